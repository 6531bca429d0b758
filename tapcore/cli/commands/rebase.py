"""`tapdisk rebase`."""

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
from tapcore.tools.rebase import Rebase, rebase_image


@tap_command("rebase")
@image_argument()
@click.option(
    "-b",
    "--parent",
    metavar="PARENT",
    shell_complete=completes("image"),
    required=True,
    help="The new parent; a relative path counts from IMAGE's directory. '': none, IMAGE is to "
    "stand alone.",
)
@click.option(
    "--unsafe",
    "-u",
    is_flag=True,
    help="Only change what is recorded: PARENT holds the same, or only its name has changed.",
)
@opening_options
@progress_option
@quiet_option
def command(
    image: str,
    parent: str,
    unsafe: bool,
    access: Access,
    progress_style: Style,
    quiet: bool,
) -> None:
    """Give IMAGE another parent; IMAGE reads as before.

    What would read differently is copied into IMAGE first. With --unsafe nothing is, and the old
    parent need not exist.
    """
    with progress("rebasing", quiet=quiet, style=progress_style) as tell:
        done = rebase_image(image, parent, unsafe=unsafe, access=access, progress=tell)
    if not quiet:
        print_line(_line(done))


def _line(done: Rebase) -> str:
    copied = f"; {format_size(done.written)} were copied into it" if done.written else ""
    if done.parent is None:
        return f"the image stands alone{copied}"
    return f"its parent is {done.parent}{copied}"
