"""`tapdisk map`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from tapcore.cli.options import image_argument, json_option, opening_options, tap_command
from tapcore.cli.output import print_line
from tapcore.keys import Keys
from tapcore.references import ReferencePolicy
from tapcore.tools.map import MapItem, map_disk
from tapcore.tools.opening import open_image


@tap_command("map", short_help="which ranges hold data, read as zeroes, or come from a parent")
@image_argument()
@json_option
@opening_options
def command(image: str, as_json: bool, references: ReferencePolicy, keys: Keys | None) -> None:
    """Tell which ranges of IMAGE hold data, read as zeroes, or come from a parent.

    DEPTH is 0 for IMAGE itself, 1 for its parent, and so on. Offsets are bytes.
    """
    with open_image(image, references=references, keys=keys) as disk:
        items = map_disk(disk)
        if as_json:
            _print_json(items, disk.state.image.name)
        else:
            _print(items, disk.size)


def _print_json(items: Iterator[MapItem], image: str) -> None:
    """One item a line, as it comes: the map of a large disk is long."""
    separator = "["
    for item in items:
        sys.stdout.write(f"{separator}{json.dumps(item.as_dict(image))}")
        separator = ",\n "
    sys.stdout.write("[]\n" if separator == "[" else "]\n")


def _print(items: Iterator[MapItem], size: int) -> None:
    width = max(len(f"{size:#x}"), len("LENGTH"))
    print_line(f"{'START':<{width}}  {'LENGTH':<{width}}  DEPTH  CONTENT     WHERE")
    for item in items:
        where = ""
        if item.data and item.offset is not None:
            where = f"{item.offset:#x} in {item.filename}"
        start, length = f"{item.start:#x}", f"{item.length:#x}"
        line = (
            f"{start:<{width}}  {length:<{width}}  {item.depth:<5}  {_content(item):<10}  {where}"
        )
        print_line(line.rstrip())


def _content(item: MapItem) -> str:
    if item.compressed:
        return "compressed"
    if item.data:
        return "data"
    return "zero" if item.present else "hole"
