"""`tapdisk bitmap`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import click

from tapcore.cli.bitmapstate import state_of
from tapcore.cli.options import (
    completes,
    image_argument,
    json_option,
    opening_options,
    quiet_option,
    tap_command,
)
from tapcore.cli.output import print_json, print_line, print_table
from tapcore.cli.signals import finishing_first
from tapcore.cli.sizes import Size
from tapcore.interface.access import Access
from tapcore.interface.results import Bitmap
from tapcore.sizes import format_size
from tapcore.tools.bitmaps import (
    add_bitmap,
    bitmap_as_dict,
    clear_bitmap,
    enable_bitmap,
    list_bitmaps,
    merge_bitmap,
    remove_bitmap,
)

_DONE: Mapping[str, str] = {
    "add": "added",
    "remove": "removed",
    "clear": "cleared",
    "enable": "enabled",
    "disable": "disabled",
    "merge": "merged into",
}


@tap_command("bitmap")
@click.argument(
    "action",
    type=click.Choice(("list", *_DONE)),
    metavar="list|add|remove|clear|enable|disable|merge",
)
@image_argument()
@click.argument("name", required=False)
@click.argument("source", required=False)
@click.option(
    "--granularity",
    "-g",
    type=Size(),
    help="Bytes that one bit stands for, a power of two; of a bitmap that is added.",
)
@click.option("--disabled", is_flag=True, help="What is added records nothing yet.")
@click.option(
    "--from",
    "source_image",
    metavar="IMAGE",
    default="",
    shell_complete=completes("image"),
    help="Merge SOURCE of this other image, whose disk has the same size.",
)
@json_option
@opening_options
@quiet_option
@click.pass_context
def command(
    ctx: click.Context,
    action: str,
    image: str,
    name: str | None,
    source: str | None,
    granularity: int | None,
    disabled: bool,
    source_image: str,
    as_json: bool,
    access: Access,
    quiet: bool,
) -> None:
    """List IMAGE's persistent bitmaps, or change the one called NAME.

    A bitmap says which parts of the disk changed since it was added or cleared: what an incremental
    backup has to copy. Whoever writes to the disk records it in those that are enabled. 'merge'
    lets NAME call changed what SOURCE does, too.
    """
    _check(ctx, action, name, source)
    if (granularity is not None and action != "add") or (disabled and action != "add"):
        raise click.UsageError("--granularity and --disabled are of a bitmap that is added", ctx)
    if source_image and action != "merge":
        raise click.UsageError("--from is for 'merge'", ctx)
    if action == "list":
        _print(list_bitmaps(image, access=access), as_json=as_json)
        return
    assert name is not None
    changes: dict[str, Callable[[], Bitmap]] = {
        "add": lambda: add_bitmap(
            image, name, granularity=granularity or 0, enabled=not disabled, access=access
        ),
        "remove": lambda: remove_bitmap(image, name, access=access),
        "clear": lambda: clear_bitmap(image, name, access=access),
        "enable": lambda: enable_bitmap(image, name, access=access),
        "disable": lambda: enable_bitmap(image, name, enabled=False, access=access),
        "merge": lambda: merge_bitmap(
            image, name, source or "", source_image=source_image, access=access
        ),
    }
    with finishing_first():
        bitmap = changes[action]()
    if as_json:
        print_json(bitmap_as_dict(bitmap))
    elif not quiet:
        print_line(f"{_DONE[action]} the bitmap {bitmap.name}")


def _check(ctx: click.Context, action: str, name: str | None, source: str | None) -> None:
    if action == "list":
        if name is not None:
            raise click.UsageError("'list' takes no NAME", ctx)
        return
    if name is None:
        raise click.UsageError(f"'{action}' needs a NAME", ctx)
    if action == "merge" and source is None:
        raise click.UsageError("'merge' needs a NAME, and a SOURCE that is merged into it", ctx)
    if action != "merge" and source is not None:
        raise click.UsageError(f"'{action}' takes one NAME", ctx)


def _print(bitmaps: list[Bitmap], *, as_json: bool) -> None:
    if as_json:
        print_json([bitmap_as_dict(bitmap) for bitmap in bitmaps])
    elif bitmaps:
        rows = [(b.name, format_size(b.granularity), state_of(b)) for b in bitmaps]
        print_table(("NAME", "GRANULARITY", "STATE"), rows)
    else:
        print_line("no bitmaps")
