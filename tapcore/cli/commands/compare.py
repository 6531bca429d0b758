"""`tapdisk compare`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import attrs
import click

from tapcore.cli.options import (
    image_argument,
    json_has_begun,
    json_option,
    opening_options,
    progress_option,
    quiet_option,
    salvage_option,
    session_of,
    tap_command,
)
from tapcore.cli.output import json_text, print_json, print_line, size_with_bytes
from tapcore.cli.progress import Style, progress
from tapcore.cli.salvaged import LOST, noting_losses, print_losses
from tapcore.interface.access import Access
from tapcore.tools.compare import Comparison, compare_disks
from tapcore.tools.differences import differing_ranges
from tapcore.tools.openimage import open_image

SAME, DIFFERENT, FAILED = 0, 1, 2


@tap_command("compare")
@image_argument("a")
@image_argument("b")
@click.option("--strict", "-s", is_flag=True, help="Sizes and allocation must be the same too.")
@click.option("--all", "every", is_flag=True, help="List every range that differs.")
@json_option
@salvage_option
@opening_options
@progress_option
@quiet_option
@click.pass_context
def command(
    ctx: click.Context,
    a: str,
    b: str,
    strict: bool,
    every: bool,
    as_json: bool,
    salvage: bool,
    access: Access,
    progress_style: Style,
    quiet: bool,
) -> int:
    """Do the images A and B have the same content?

    A longer image may go on with zeroes, unless --strict is given. With --all every range that
    differs is listed, in bytes, by whole sectors. Exit status: 0 same, 1 different, 2 an error,
    3 the same but for content that could not be read (--salvage).
    """
    session_of(ctx).error_status = FAILED
    if every and strict:
        raise click.UsageError("--all lists content that differs, --strict stops at once", ctx)
    first, second = noting_losses(salvage), noting_losses(salvage)
    with (
        open_image(a, access=access, salvage=first) as one,
        open_image(b, access=access, salvage=second) as other,
        progress("comparing", quiet=quiet, style=progress_style) as tell,
    ):
        if every:
            same = not _list(differing_ranges(one, other, progress=tell), as_json, quiet)
        else:
            found = compare_disks(one, other, strict=strict, progress=tell)
            same = found.identical
    if not every and as_json:
        print_json(attrs.asdict(found))
    elif not every and not quiet:
        _print(found)
    lost = [each for each in (first, second) if each is not None and each.count]
    for each in lost:
        print_losses(each)
    if not same:
        return DIFFERENT
    return LOST if lost else SAME


def _list(ranges: Iterator[tuple[int, int]], as_json: bool, quiet: bool) -> int:
    """Print ranges as they are found, and how much it is; returns that, in bytes."""
    total = 0
    separator = "["
    for start, end in ranges:
        total += end - start
        if as_json:
            item = json_text({"start": start, "length": end - start})
            sys.stdout.write(f"{separator}{item}")
            separator = ",\n "
            json_has_begun()
        elif not quiet:
            print_line(f"{start:#x}  {end - start:#x}")
    if as_json:
        sys.stdout.write("[]\n" if separator == "[" else "]\n")
    elif not quiet:
        print_line(f"{size_with_bytes(total)} differ." if total else "Images are identical.")
    return total


def _print(found: Comparison) -> None:
    """The words of `qemu-img compare`, which scripts look for."""
    if found.reason == "size":
        print_line("Strict mode: Image size mismatch!")
        return
    if found.sizes_differ:
        print_line("Warning: Image size mismatch!")
    if found.identical:
        print_line("Images are identical.")
    elif found.reason == "allocation":
        print_line(f"Strict mode: Offset {found.offset} block status mismatch!")
    else:
        assert found.offset is not None
        sector = found.offset & ~511  # qemu-img tells the sector
        print_line(f"Content mismatch at offset {sector}! (first byte: {found.offset})")
