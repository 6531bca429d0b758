"""`tapdisk extract`."""

from __future__ import annotations

import click

from tapcore.cli.options import (
    completes,
    image_argument,
    opening_options,
    progress_option,
    quiet_option,
    tap_command,
)
from tapcore.cli.output import print_line
from tapcore.cli.progress import Style, progress
from tapcore.interface.access import Access
from tapcore.sizes import format_size
from tapcore.tools.filesystems import open_file_systems


@tap_command("extract")
@image_argument(metavar="IMAGE[:PARTITION]")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "-d",
    "--directory",
    default=".",
    metavar="DIR",
    shell_complete=completes("directory"),
    help="Where to; made if it is not there.  [default: here]",
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
@opening_options
@progress_option
@quiet_option
def command(
    image: str,
    paths: tuple[str, ...],
    directory: str,
    force: bool,
    access: Access,
    progress_style: Style,
    quiet: bool,
) -> None:
    """Copy files, and folders with all that is in them, out of IMAGE.

    Without PATH everything. Modes, times and links stay; owners are yours. Nothing is written
    outside DIR: links that lead out of it are left out, and counted.
    """
    with (
        open_file_systems(image, access) as found,
        progress("extracting", quiet=quiet, style=progress_style) as tell,
    ):
        done = found.extract(paths or ("/",), directory, force=force, progress=tell)
    if quiet:
        return
    print_line(f"extracted {done.entries} entries, {format_size(done.bytes)}, to {directory}")
    for kind, count in sorted(done.skipped.items()):
        print_line(f"left out: {count} {kind.replace('_', ' ')}")
