"""`tapdisk create`."""

from __future__ import annotations

import click

from tapcore.cli.habits import FORMAT_GIVEN
from tapcore.cli.options import (
    force_option,
    format_options,
    image_argument,
    opening_options,
    parent_option,
    progress_option,
    quiet_option,
    tap_command,
)
from tapcore.cli.optionshelp import (
    print_all_create_options,
    print_create_options,
    print_format_options,
)
from tapcore.cli.output import format_word, print_line
from tapcore.cli.progress import Style, shown
from tapcore.cli.sizes import Size
from tapcore.interface.access import Access
from tapcore.sizes import format_size
from tapcore.tools.create import TAKE_SPACE, create_image


@tap_command("create")
@image_argument(required=False)
@click.argument("size", type=Size(whole_sectors=True), required=False)
@parent_option
@format_options
@force_option
@opening_options
@quiet_option
@progress_option
@click.pass_context
def command(
    ctx: click.Context,
    image: str | None,
    size: int | None,
    parent: str,
    options: dict[str, str],
    force: bool,
    access: Access,
    quiet: bool,
    progress_style: Style,
) -> None:
    """Make a new IMAGE of SIZE (10G, 512M, ...; with -b it may be left out: the parent's).

    The format is IMAGE's HANDLE, or that of its suffix (.img and .raw: raw).
    """
    if "help" in options:
        _print_options(ctx, image)
        return
    if image is None:
        raise click.UsageError("Missing argument 'IMAGE'.", ctx)
    quick = options.get("preallocation", "off") not in TAKE_SPACE
    with shown("preallocating", quiet or quick, progress_style) as tell:
        made = create_image(
            image,
            size,
            parent=parent,
            options=options,
            force=force,
            parents=access.references,
            keys=access.keys,
            progress=tell,
        )
    if not quiet:
        what = f", {format_size(size)}" if size is not None else ""
        print_line(f"created {made.name}: {format_word(made.drivertype)}{what}")


def _print_options(ctx: click.Context, image: str | None) -> None:
    """Of the image's format, of the one that was named without an image, or of every one."""
    if image is not None:
        print_format_options(image)
    elif FORMAT_GIVEN in ctx.meta:
        print_create_options(ctx.meta[FORMAT_GIVEN])
    else:
        print_all_create_options()
