"""`tapdisk tree`."""

from __future__ import annotations

import click

from tapcore.cli.options import image_argument, opening_options, tap_command
from tapcore.cli.output import print_line
from tapcore.interface.access import Access
from tapcore.tools.filesystems import open_file_systems


@tap_command("tree")
@image_argument(metavar="IMAGE[:PARTITION]")
@click.argument("path", default="/")
@click.option(
    "-L",
    "--levels",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Folders at most N deep.  [default: all]",
)
@opening_options
def command(image: str, path: str, levels: int | None, access: Access) -> None:
    """Show the files inside IMAGE as a tree."""
    with open_file_systems(image, access) as found:
        print_line(path)
        for entry in found.entries(path, depth=-1 if levels is None else levels - 1):
            link = f" -> {entry.link_target}" if entry.link_target is not None else ""
            error = f" ({entry.error})" if entry.error else ""
            end = "/" if entry.is_dir else ""
            print_line(f"{'  ' * (entry.depth + 1)}{entry.name}{end}{link}{error}")
