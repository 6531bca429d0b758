"""`tapdisk commit`."""

from __future__ import annotations

from tapcore.cli.options import (
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
from tapcore.tools.commit import commit_image


@tap_command("commit")
@image_argument()
@opening_options
@progress_option
@quiet_option
def command(image: str, access: Access, progress_style: Style, quiet: bool) -> None:
    """Fold what IMAGE holds itself into its parent, and empty IMAGE.

    Both read the same afterwards. The parent grows where IMAGE is larger. Other children of that
    parent are spoilt. Both must not be in use.
    """
    with progress("committing", quiet=quiet, style=progress_style) as tell:
        done = commit_image(image, access=access, progress=tell)
    if quiet:
        return
    print_line(f"committed {format_size(done.written)} of data to {done.parent.name}")
    if not done.emptied:
        print_line("the image still holds its data too: its format cannot be emptied")
