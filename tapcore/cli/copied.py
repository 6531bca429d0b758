"""What a conversion tells of what it made."""

from __future__ import annotations

from tapcore.cli.output import format_word, print_line
from tapcore.interface.options import DiskId
from tapcore.opening.names import STANDARD
from tapcore.sizes import format_size


def print_copied(made: DiskId, written: int, done: str = "created") -> None:
    """One line for a person; nothing where standard output is the image.

    Args:
        made: the image.
        written: bytes of data.
        done: what was done with it, in a word or two.
    """
    if made.name != STANDARD:
        size = format_size(written)
        print_line(f"{done} {made.name}: {format_word(made.drivertype)}, {size} of data")
