"""`tapdisk convert`."""

from __future__ import annotations

from typing import Final

import attrs
import click

from tapcore.cli.copied import print_copied
from tapcore.cli.options import (
    filter_option,
    force_option,
    format_options,
    image_argument,
    json_option,
    opening_options,
    parent_option,
    progress_option,
    quiet_option,
    salvage_option,
    tap_command,
)
from tapcore.cli.output import print_json
from tapcore.cli.progress import Style, progress
from tapcore.cli.salvaged import LOST, losses_as_dict, noting_losses, print_losses
from tapcore.cli.sizes import metadata_cache_option
from tapcore.interface.access import Access
from tapcore.opening.names import STANDARD
from tapcore.tools.convert import convert_image

_OF_NEW_IMAGES: Final = ("-c", "-b", "-o", "--bitmaps", "--force", "--keep-partial")


@tap_command("convert")
@image_argument("source")
@image_argument("target")
@click.option("-c", "--compressed", is_flag=True, help="Store the data compressed.")
@parent_option
@format_options
@click.option("--snapshot", metavar="NAME", default="", help="Copy this internal snapshot.")
@click.option("--bitmaps", is_flag=True, help="Copy persistent bitmaps, too.")
@force_option
@click.option(
    "-n",
    "--into",
    is_flag=True,
    help="TARGET exists, an image or a device: write into it, and make nothing.",
)
@click.option(
    "--target-is-zero", is_flag=True, help="With --into: TARGET reads as zeroes, write none."
)
@click.option("--keep-partial", is_flag=True, help="When stopped, leave a TARGET.partial.")
@salvage_option
@json_option
@click.option("--sync", is_flag=True, help="End when the copy is on disk, as if by sync(1).")
@filter_option
@metadata_cache_option
@opening_options
@progress_option
@quiet_option
def command(
    source: str,
    target: str,
    compressed: bool,
    parent: str,
    options: dict[str, str],
    snapshot: str,
    bitmaps: bool,
    force: bool,
    into: bool,
    target_is_zero: bool,
    keep_partial: bool,
    salvage: bool,
    as_json: bool,
    sync: bool,
    filters: tuple[str, ...],
    metadata_cache: int | None,
    access: Access,
    progress_style: Style,
    quiet: bool,
) -> int:
    """Copy SOURCE's content to a new image TARGET.

    Sparse stays sparse, and longer runs of zeroes are not stored. TARGET's format is its HANDLE, or
    that of its suffix (.img and .raw: raw). TARGET appears, or replaces what is there (--force),
    when it is whole.

    SOURCE may be '-': a raw disk from standard input. TARGET may be '-', a raw disk to standard
    output, or HANDLE:- for an image of a format that can be written front to back.

    Where SOURCE is damaged nothing is made, unless --salvage is given. Exit status: 0 all was
    copied, 1 an error, 3 TARGET has zeroes for content that could not be read (--salvage).
    """
    # As long as it is by its options, each of which goes on as it came.
    if "help" in options:
        from tapcore.cli.optionshelp import print_format_options

        print_format_options(target)
        return 0
    lost = noting_losses(salvage)
    if into:
        from tapcore.tools.convertinto import convert_into

        unfit = (compressed, parent, options, bitmaps, force, keep_partial)
        _refuse_unfit(dict(zip(_OF_NEW_IMAGES, unfit, strict=True)))
    elif target_is_zero:
        raise click.UsageError("--target-is-zero is for a TARGET that exists: it goes with --into")
    with progress("converting", quiet=quiet, style=progress_style) as tell:
        made, written = (
            convert_into(
                source,
                target,
                target_is_zero=target_is_zero,
                snapshot=snapshot,
                access=attrs.evolve(access, metadata_cache=metadata_cache, filters=filters),
                progress=tell,
                salvage=lost,
            )
            if into
            else convert_image(
                source,
                target,
                parent=parent,
                options=options,
                compressed=compressed,
                snapshot=snapshot,
                force=force,
                keep_partial=keep_partial,
                sync=sync,
                metadata_cache=metadata_cache,
                parents=access.references,
                keys=access.keys,
                filters=filters,
                progress=tell,
                salvage=lost,
                bitmaps=bitmaps,
            )
        )
    piped = made.name == STANDARD
    if as_json and not piped:
        facts = {"image": made.name, "handle": made.drivertype, "written": written}
        print_json(facts | (losses_as_dict(lost) if lost is not None else {}))
    elif not quiet:
        print_copied(made, written, "written into" if into else "created")
    if lost is None or not lost.count:
        return 0
    if not as_json or piped:
        print_losses(lost)
    return LOST


def _refuse_unfit(given: dict[str, object]) -> None:
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} is for a new image, and --into makes none")
