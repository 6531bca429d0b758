"""Which places of the file are in use, by one pass through the block table."""

from __future__ import annotations

from typing import Final

import attrs

from tap_vhdx.bat import NOT_PRESENT, PARTIAL, PLACE, PRESENT, STATE, UNMAPPED, Page
from tap_vhdx.headers import MIB
from tap_vhdx.pages import Pages

MOST_SAID: Final = 20
"""Blocks of which each is named."""

BLOCK: Final = 0
BITMAP: Final = 1
KEPT: Final = 2
"""Kinds: a block's content; a block of the sector bitmap; what is kept for a block of zeroes."""

_PLACE_SHIFT: Final = 36 - 20  # of a place in bytes, to stand above number and kind


@attrs.define
class Survey:
    """What lies where.

    Attributes:
        used: all that has a place, by place: see `unpacked`.
        gaps: ranges between them, offset and length, bytes; the first one last.
        end: first byte behind all that is in use or in the file, at whole MiB.
        last: first byte behind all that is in use.
        stored: blocks that are stored, in the file.
        astray: those of them that share their place with another one.
        lost: blocks whose content is not there, or cannot be.
        said: what there is to say of the latter two.
    """

    used: list[int] = attrs.field(factory=list)
    gaps: list[tuple[int, int]] = attrs.field(factory=list)
    end: int = 0
    last: int = 0
    stored: int = 0
    astray: list[int] = attrs.field(factory=list)
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

    def lose(self, text: str) -> None:
        """A block whose content is not there."""
        self.lost += 1
        self.say(text)


def packed(place: int, number: int, kind: int) -> int:
    """A place in use as one number, which sorts by place.

    Args:
        place: bytes.
        number: of the block, or of the chunk.
        kind: `BLOCK`, `BITMAP` or `KEPT`.
    """
    return place << _PLACE_SHIFT | number << 2 | kind


def unpacked(used: int) -> tuple[int, int, int]:
    """The opposite."""
    return used >> 36 << 20, used >> 2 & (1 << 34) - 1, used & 3


def survey(table: Pages) -> Survey:
    """Look at a file's block table.

    Raises:
        OSError: as the system says.
    """
    found = Survey()
    for page in table.all():
        _look_at(table, page, found)
    for chunk, place in table.bitmaps():
        if not table.is_structure(place, MIB) and place + MIB <= table.file.size:
            found.used.append(packed(place, chunk, BITMAP))
    found.used.sort()
    _sweep(table, found)
    return found


def _look_at(table: Pages, page: Page, found: Survey) -> None:
    geometry, size = table.geometry, table.file.size
    first, ratio = page.index << geometry.page_shift, geometry.ratio_shift
    count = min(1 << geometry.page_shift, geometry.blocks - first)
    for number in range(count):
        entry = page.entries[number + (number >> ratio)]
        state, block = entry & STATE, first + number
        if state == NOT_PRESENT:
            continue
        place = entry & PLACE
        if state <= UNMAPPED:
            if MIB <= place < size:
                found.used.append(packed(place, block, KEPT))
        elif state == PRESENT or (state == PARTIAL and table.differs):
            _look_at_block(table, page, block, place, found)
            if state == PARTIAL and not page.bits:
                found.lose(f"does not say which sectors of block {block} are stored")
        else:
            found.lose(f"block {block} has an impossible state ({state})")


def _look_at_block(table: Pages, page: Page, block: int, place: int, found: Survey) -> None:
    disk = table.layout.disk
    needed = min(disk.block_size, disk.size - block * disk.block_size)
    if place + needed > table.file.size:
        found.lose(f"block {block} lies past the end of the file: its content is lost")
    elif not page.sound and table.is_structure(place, disk.block_size):
        found.lose(f"block {block} lies where none can be ({place:#x})")
    else:
        found.stored += 1
        found.used.append(packed(place, block, BLOCK))


def _sweep(table: Pages, found: Survey) -> None:
    """Find out what overlaps, and what lies between."""
    block = table.layout.disk.block_size
    structures = [(start, end) for start, end in table.layout.places]
    reach, at = MIB, 0
    for each in (*found.used, packed(1 << 60, 0, KEPT)):
        place, number, kind = unpacked(each)
        while at < len(structures) and structures[at][0] < place:
            start, end = structures[at]
            if start > reach:
                found.gaps.append((reach, start - reach))
            reach, at = max(reach, end), at + 1
        if place == 1 << 60:
            break
        if place < reach and kind != KEPT:
            found.astray.append(each)
            name = f"block {number}" if kind == BLOCK else f"the sector bitmap {number}"
            found.say(f"{name} lies where another block lies ({place:#x})")
        if place > reach:
            found.gaps.append((reach, place - reach))
        reach = max(reach, place + (MIB if kind == BITMAP else block))
    found.last = reach
    found.end = max(reach, -(-table.file.size // MIB) * MIB)
    if found.end > reach:
        found.gaps.append((reach, found.end - reach))
    found.gaps.reverse()
