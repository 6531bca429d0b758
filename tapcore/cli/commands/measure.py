"""`tapdisk measure`."""

from __future__ import annotations

import click

from tapcore.cli.options import (
    completes,
    format_options,
    image_argument,
    json_option,
    opening_options,
    tap_command,
)
from tapcore.cli.optionshelp import print_create_options
from tapcore.cli.output import print_json, print_pairs, size_with_bytes
from tapcore.cli.sizes import Size
from tapcore.interface.access import Access
from tapcore.interface.results import Measurement
from tapcore.tools.measure import measure_image, measure_size, measurement_as_dict


@tap_command("measure")
@image_argument("source", required=False, metavar="[SOURCE]")
@click.option(
    "-O",
    "--format",
    "handle",
    metavar="HANDLE",
    shell_complete=completes("handle"),
    help="Its format.",
)
@click.option("--size", type=Size(), help="Of an empty disk of this size, without a SOURCE.")
@format_options
@click.option("--snapshot", metavar="NAME", default="", help="Of this internal snapshot.")
@json_option
@opening_options
@click.pass_context
def command(
    ctx: click.Context,
    source: str | None,
    handle: str | None,
    size: int | None,
    options: dict[str, str],
    snapshot: str,
    as_json: bool,
    access: Access,
) -> None:
    """Tell how many bytes SOURCE would take, converted to the format HANDLE; makes nothing.

    'required' is for the content as it is, 'fully allocated' for a disk that is written everywhere.
    """
    if not handle:
        raise click.UsageError("Missing option '-O'.", ctx)
    if "help" in options:
        print_create_options(handle)
        return
    if (source is None) == (size is None):
        raise click.UsageError("give either SOURCE or --size", ctx)
    if source is not None:
        found = measure_image(source, handle, options=options, snapshot=snapshot, access=access)
    else:
        assert size is not None
        found = measure_size(size, handle, options=options)
    if as_json:
        print_json(measurement_as_dict(found))
    else:
        _print(found)


def _print(found: Measurement) -> None:
    print_pairs(
        [
            ("required", size_with_bytes(found.required)),
            ("fully allocated", size_with_bytes(found.fully_allocated)),
            *([("bitmaps", size_with_bytes(found.bitmaps))] if found.bitmaps else []),
        ]
    )
