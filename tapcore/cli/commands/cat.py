"""`tapdisk cat`."""

from __future__ import annotations

import sys

import click

from tapcore.cli.options import image_argument, opening_options, tap_command
from tapcore.interface.access import Access
from tapcore.tools.filesystems import open_file_systems


@tap_command("cat")
@image_argument(metavar="IMAGE[:PARTITION]")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@opening_options
def command(image: str, paths: tuple[str, ...], access: Access) -> None:
    """Write the content of files inside IMAGE to standard output, one after the other."""
    with open_file_systems(image, access) as found:
        for path in paths:
            found.copy_file(path, sys.stdout.buffer)
        sys.stdout.buffer.flush()
