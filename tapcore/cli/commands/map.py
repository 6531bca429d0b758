"""`tapdisk map`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from tapcore.cli.eachimage import Answer, each_image
from tapcore.cli.options import (
    completes,
    image_argument,
    json_has_begun,
    json_option,
    opening_options,
    quiet_option,
    tap_command,
)
from tapcore.cli.output import json_text, print_line
from tapcore.interface.access import Access
from tapcore.tools.map import MapItem, map_disk
from tapcore.tools.openimage import open_image

if TYPE_CHECKING:
    from tapcore.disk import Disk


@tap_command("map")
@image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
@json_option
@click.option("--picture", is_flag=True, help="Draw it, with a legend that has the sums.")
@click.option(
    "--svg",
    metavar="FILE",
    default="",
    shell_complete=completes("file"),
    help="Draw the whole chain, for a browser, into FILE.",
)
@click.option("--force", is_flag=True, help="Replace a FILE that exists.")
@opening_options
@quiet_option
def command(
    images: tuple[str, ...],
    as_json: bool,
    picture: bool,
    svg: str,
    force: bool,
    access: Access,
    quiet: bool,
) -> int:
    """Tell which ranges of each IMAGE hold data, read as zeroes, or come from a parent.

    DEPTH is 0 for IMAGE itself, 1 for its parent, and so on. Offsets are bytes. With several
    images --json is an array of objects: "image", and its "map" (or an "error").

    In a picture each character, or part of a row, is a range of the disk. Where a range holds
    several kinds, it shows the content (data, compressed, of a parent) of which it has most,
    however little that is; the thin characters say that it is no more than half.
    """
    if as_json and (picture or svg):
        raise click.UsageError("--json is one way to show it, --picture and --svg are others")
    if svg and len(images) > 1:
        raise click.UsageError("--svg draws one image")
    several = len(images) > 1

    def look(image: str) -> Answer:
        with open_image(image, access=access) as disk:
            if svg:
                _write_svg(disk, svg, force, quiet)
            if picture:
                _print_picture(disk, quiet)
            elif as_json and several:
                name = disk.state.image.name
                return Answer({"image": image, "map": [i.as_dict(name) for i in map_disk(disk)]})
            elif as_json:
                _print_json(map_disk(disk), disk.state.image.name)
            elif not svg:
                _print(map_disk(disk), disk.size)
        return Answer()

    if several:
        return each_image(images, look, as_json=as_json, headings=True)
    return look(images[0]).status


def _print_json(items: Iterator[MapItem], image: str) -> None:
    """One item a line, as it comes: the map of a large disk is long."""
    separator = "["
    for item in items:
        sys.stdout.write(f"{separator}{json_text(item.as_dict(image))}")
        separator = ",\n "
        json_has_begun()
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
    if item.missing:
        return "missing"
    if item.compressed:
        return "compressed"
    if item.data:
        return "data"
    return "zero" if item.present else "hole"


# ---- pictures --------------------------------------------------------------------------------


def _print_picture(disk: Disk, quiet: bool) -> None:
    from tapcore.cli.drawing import drawing_area, print_styled
    from tapcore.cli.progress import progress
    from tapcore.tools.picture_text import characters_for, text_picture

    columns, lines = drawing_area()
    characters = characters_for(sys.stdout.encoding)  # the bar puts another stdout in its place
    with progress("looking", quiet=quiet) as tell:
        picture = text_picture(disk, columns, lines, characters=characters, progress=tell)
    print_styled(picture)


def _write_svg(disk: Disk, path: str, force: bool, quiet: bool) -> None:
    from tapcore.cli.drawing import claim_file
    from tapcore.cli.progress import progress
    from tapcore.tools.picture_svg import svg_picture

    images = [dd.name for dd in disk.state.disks.chain()]
    with claim_file(path, force=force, never=images) as write:
        with progress("looking", quiet=quiet) as tell:
            text = svg_picture(disk, progress=tell)
        write(text)
