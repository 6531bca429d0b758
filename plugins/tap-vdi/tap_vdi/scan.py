"""What is wrong with a block map, in one pass through it."""

from __future__ import annotations

from typing import Final

import attrs

from tap_vdi.blockmap import stored_blocks
from tap_vdi.header import Header
from tapcore import ImageFile

MOST_SAID: Final = 20
"""Blocks of which each is named."""


@attrs.define
class Scan:
    """What lies where.

    Attributes:
        used: a byte for each place that there may be: 1 where a block lies in it.
        end: the first place behind all that are in use.
        stored: how many blocks have a place inside the file.
        astray: blocks, with their places, that share one with another block, or lie where the
            format has none; their content is there.
        lost: how many blocks lie past the end of the file.
        said: what there is to say of the latter two.
    """

    used: bytearray
    end: int = 0
    stored: int = 0
    astray: list[tuple[int, int]] = attrs.field(factory=list)
    lost: int = 0
    said: list[str] = attrs.field(factory=list)

    @property
    def whole(self) -> bool:
        """Whether every block has a place of its own, with its content."""
        return not self.astray and not self.lost

    def say(self, text: str) -> None:
        """Of the first ones."""
        if len(self.said) < MOST_SAID:
            self.said.append(text)
        elif len(self.said) == MOST_SAID:
            self.said.append("and more of that kind")


def scan(header: Header, file: ImageFile) -> Scan:
    """Look at the block map of a file.

    Raises:
        ImageFormatError: it has many more blocks than the file can hold.
        OSError: as the system says.
    """
    found = Scan(bytearray(header.blocks))
    for block, place in stored_blocks(header, file.read_metadata, file.size):
        if not header.holds(file.size, block, place):
            found.lost += 1
            found.say(f"block {block} lies past the end of the file: its content is lost")
            continue
        found.stored += 1
        if place >= header.blocks:
            found.astray.append((block, place))
            found.say(f"block {block} lies at place {place}, of {header.blocks}")
        elif found.used[place]:
            found.astray.append((block, place))
            found.say(f"block {block} lies at place {place}, where another block lies")
        else:
            found.used[place] = 1
            found.end = max(found.end, place + 1)
    return found
