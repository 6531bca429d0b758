"""`tapdisk convert`."""

from __future__ import annotations

import click

from tapcore.cli.options import (
    force_option,
    format_options,
    image_argument,
    opening_options,
    parent_option,
    quiet_option,
    tap_command,
)
from tapcore.cli.optionshelp import print_format_options
from tapcore.cli.output import print_line
from tapcore.cli.progress import progress
from tapcore.keys import Keys
from tapcore.names import format_size
from tapcore.references import ReferencePolicy
from tapcore.tools.convert import convert_image


@tap_command("convert", short_help="copy an image's content to a new image of any format")
@image_argument("source")
@image_argument("target")
@click.option("-c", "--compressed", is_flag=True, help="Store the data compressed.")
@parent_option
@format_options
@click.option("--snapshot", metavar="NAME", default="", help="Copy this internal snapshot.")
@force_option
@opening_options
@quiet_option
def command(
    source: str,
    target: str,
    compressed: bool,
    parent: str,
    options: dict[str, str],
    snapshot: str,
    force: bool,
    references: ReferencePolicy,
    keys: Keys | None,
    quiet: bool,
) -> None:
    """Copy SOURCE's content to a new image TARGET.

    Sparse stays sparse, and longer runs of zeroes are not stored. The copy is on disk when the
    command ends; a half-written one is removed. TARGET's format is its HANDLE, or that of its
    suffix (.img and .raw: raw).
    """
    if "help" in options:
        print_format_options(target)
        return
    with progress("converting", quiet=quiet) as tell:
        made, written = convert_image(
            source,
            target,
            parent=parent,
            options=options,
            compressed=compressed,
            snapshot=snapshot,
            force=force,
            references=references,
            keys=keys,
            progress=tell,
        )
    if not quiet:
        print_line(f"created {made.name}: {made.drivertype}, {format_size(written)} of data")
