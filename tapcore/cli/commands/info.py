"""`tapdisk info`."""

from __future__ import annotations

import click

from tapcore.cli.options import image_argument, json_option, opening_options, tap_command
from tapcore.cli.output import print_json, print_line, print_pairs, size_with_bytes
from tapcore.keys import Keys
from tapcore.names import format_size
from tapcore.references import ReferencePolicy
from tapcore.tools.info import ImageInfo, image_info


@tap_command("info", short_help="what an image is")
@image_argument()
@json_option
@click.option("--chain", is_flag=True, help="Its parents too, child first.")
@opening_options
def command(
    image: str, as_json: bool, chain: bool, references: ReferencePolicy, keys: Keys | None
) -> None:
    """Tell what IMAGE is. Takes no lock, and opens parents only with --chain."""
    found = image_info(image, chain=chain, references=references, keys=keys)
    if as_json:
        objects = [info.as_dict() for info in found]
        print_json(objects if chain else objects[0])
        return
    for number, info in enumerate(found):
        if number:
            print_line()
        _print(info)


def _print(info: ImageInfo) -> None:
    print_pairs(
        [
            ("image", info.image),
            ("format", info.handle),
            ("virtual size", size_with_bytes(info.virtual_size)),
            ("disk size", format_size(info.disk_size)),
            *([("sector size", info.sector_size)] if info.sector_size != 512 else []),
            *([("read only", True)] if info.read_only else []),
            *([("parent", _parent(info))] if info.parent is not None else []),
        ]
    )
    if info.format:
        print_line("of this format:")
        facts = (
            (name.replace("_", " "), value)
            for name, value in info.format.items()
            if value is not None
        )
        print_pairs(facts, indent="    ")
    for note in info.notes:
        print_line(note)


def _parent(info: ImageInfo) -> str:
    return f"{info.parent} ({info.parent_handle or 'format not recorded'})"
