"""`tapdisk check`."""

from __future__ import annotations

import contextlib
from typing import Final

import click

from tapcore.cli.eachimage import Answer, each_image
from tapcore.cli.failures import print_error
from tapcore.cli.options import (
    image_argument,
    json_option,
    opening_options,
    quiet_option,
    tap_command,
)
from tapcore.cli.output import print_line
from tapcore.cli.signals import finishing_first
from tapcore.interface.access import Access
from tapcore.interface.results import CheckResult
from tapcore.tools.check import Repair, check_as_dict, check_image, check_status

_REASONS: Final = 3
"""Messages at most that tell on standard error why an image could not be checked."""


@tap_command("check")
@image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--repair",
    type=click.Choice(("leaks", "all")),
    help="Repair: only space that nothing refers to, or all that can be.",
)
@json_option
@quiet_option
@opening_options
def command(
    images: tuple[str, ...], repair: Repair | None, as_json: bool, quiet: bool, access: Access
) -> int:
    """Check the consistency of each IMAGE's metadata.

    Exit status: 0 clean, 1 could not be checked, 2 corrupt, 3 only leaked space; of several images
    the first of 1, 2, 3 that one of them has.
    """

    def look(image: str) -> Answer:
        with finishing_first() if repair else contextlib.nullcontext():
            result = check_image(image, repair=repair or "", access=access)
        status = check_status(result)
        if not (as_json or quiet):
            _print(result)
        if status == 1:  # what is on standard output is no answer
            why = "; ".join(result.messages[:_REASONS]) or "it is not known why"
            print_error(f"{image}: could not be checked: {why}")
        return Answer(check_as_dict(result), status)

    return each_image(images, look, as_json=as_json, headings=not quiet, quiet=quiet)


def _print(result: CheckResult) -> None:
    for message in result.messages:
        print_line(message)
    for fixed, what in (
        (result.leaks_fixed, "leaked clusters were given back"),
        (result.corruptions_fixed, "errors were repaired"),
    ):
        if fixed:
            print_line(f"{fixed} {what}.")
    for count, what in (
        (result.corruptions, "errors were found: the image is corrupt"),
        (result.leaks, "leaked clusters were found: space is wasted, nothing is lost"),
        (result.check_errors, "errors happened while checking: it is not complete"),
    ):
        if count:
            print_line(f"{count} {what}.")
    if not (result.corruptions or result.leaks or result.check_errors):
        print_line("No errors were found.")
    if result.total_clusters:
        share = 100 * result.allocated_clusters / result.total_clusters
        print_line(
            f"{result.allocated_clusters} of {result.total_clusters} clusters are allocated "
            f"({share:.2f}%), {result.compressed_clusters} compressed."
        )
    if result.image_end_offset:
        print_line(f"The image ends at offset {result.image_end_offset}.")
