"""The block table (BAT): for each block of the disk its state, and where it lies.

Behind the blocks of each chunk there is an entry for the block of the sector bitmap that has their
bits. The table is read in pages, each of which has the entries of a power of two of blocks.

Source: MS-VHDX 2.5 (BAT).
"""

from __future__ import annotations

from typing import ClassVar, Final

import attrs

from tap_vhdx.items import Disk
from tapcore.clusters import Coding, Numbers, Table

NOT_PRESENT: Final = 0
UNDEFINED: Final = 1
ZERO: Final = 2
UNMAPPED: Final = 3
PRESENT: Final = 6
PARTIAL: Final = 7
"""States of a block; that of a bitmap's is `NOT_PRESENT` or `PRESENT`."""

PLACE: Final = -1 << 20
"""Of an entry, the place, which is so a number of bytes."""
STATE: Final = ~PLACE
"""The state, with what must be zero."""

CODING: Final = Coding("Q", "little")
ENTRY_BYTES: Final = 8
PAGE_SHIFT: Final = 12


class Page(Table):
    """A part of the block table.

    Attributes:
        sound: no block of it lies where something else must be.
        bits: of the blocks that are stored in part, from the page's first block on; empty: there
            are no such blocks, or the bits are not where the table says.
    """

    __slots__ = ("bits", "sound")
    block_shift: ClassVar[int] = 6

    def __init__(self, index: int, offset: int, entries: Numbers) -> None:
        super().__init__(index, offset, entries, CODING)
        self.sound = True
        self.bits = b""


@attrs.frozen
class Geometry:
    """Where in the table things are.

    Attributes:
        blocks: of the disk.
        ratio_shift: log2 of the blocks of a chunk.
        page_shift: log2 of the blocks of a page; of a disk with a parent a page has one chunk at
            most.
    """

    blocks: int
    ratio_shift: int
    page_shift: int

    @property
    def pages(self) -> int:
        """How many there are."""
        return -(-self.blocks >> self.page_shift)

    def entry(self, block: int) -> int:
        """The number of a block's entry."""
        return block + (block >> self.ratio_shift)

    def bitmap_entry(self, chunk: int) -> int:
        """The number of the entry of a chunk's bitmap."""
        return (chunk + 1 << self.ratio_shift) + chunk

    def page(self, index: int) -> tuple[int, int]:
        """The first entry of a page, and how many it has."""
        first = index << self.page_shift
        last = min(first + (1 << self.page_shift), self.blocks) - 1
        return self.entry(first), self.entry(last) + 1 - self.entry(first)


def geometry_of(disk: Disk) -> Geometry:
    """Of a disk's table."""
    ratio = disk.ratio_shift
    page = PAGE_SHIFT if disk.locator is None else min(PAGE_SHIFT, ratio)
    return Geometry(disk.blocks, ratio, page)
