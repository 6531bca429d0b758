"""Checking and repairing: footers, the block table, and space that nothing lies in.

What is mended is mended where nothing lies: blocks that lie over others are copied behind all that
there is, with the footer behind them, before the block table names them there.
"""

from __future__ import annotations

from typing import Final

import attrs

from tap_vhd.blocks import BlockImage
from tap_vhd.footer import FOOTER_BYTES, TAPDISK
from tap_vhd.footers import COPY_DAMAGED, END_DAMAGED
from tap_vhd.header import UNUSED
from tap_vhd.image import Image
from tap_vhd.moving import copy, put_footer
from tapcore import SECTOR_SHIFT, CheckResult

MOST_SAID: Final = 20
_PAGE: Final = 4096
"""Bytes: fewer behind the last block are nothing but alignment."""


@attrs.define
class Scan:
    """What lies where.

    Attributes:
        end: of all that there is, bytes; the footer belongs there.
        over: blocks that lie over others, each with the offset of its bitmap.
        bad: how many lie over the structures at the front, or past the end.
        stored: blocks that the table has.
        used: blocks that are as they should be: offset of the bitmap, and which one, in order.
        gaps: in which there is room for a block, and nothing lies: first byte, and the one past it.
        said: what there is to say of blocks.
    """

    end: int
    over: list[tuple[int, int]] = attrs.field(factory=list)
    bad: int = 0
    stored: int = 0
    used: list[tuple[int, int]] = attrs.field(factory=list)
    gaps: list[tuple[int, int]] = attrs.field(factory=list)
    said: list[str] = attrs.field(factory=list)

    def pass_over(self, start: int, stop: int, length: int) -> None:
        """Something lies here (bytes); before it there may be room for blocks of a length."""
        if start - self.end >= length:
            self.gaps.append((self.end, start))
        self.end = max(self.end, _whole(stop))

    def say(self, text: str) -> None:
        """Of the first ones."""
        if len(self.said) < MOST_SAID:
            self.said.append(text)
        elif len(self.said) == MOST_SAID:
            self.said.append("and more of that kind")


def scan(image: BlockImage) -> Scan:
    """Look at all entries of the block table, in the order in which their blocks lie."""
    limit, length = image.footers.at, image.table_bytes + image.header.block_size
    entries = enumerate(image.blocks.entries)
    used = sorted((entry << SECTOR_SHIFT, index) for index, entry in entries if entry != UNUSED)
    found = Scan(_front(image, used[0][0] if used else limit), stored=len(used))
    structures = sorted(place for place in image.places if place[0] >= found.end)
    for place, index in used:
        while structures and structures[0][0] < place:
            found.pass_over(*structures.pop(0), length)
        data_end = place + image.table_bytes + image.bytes_of(index)
        if any(place < stop and start < data_end for start, stop in image.places):
            found.bad += 1
            found.say(f"block {index} lies over the structures of the image (at {place:#x})")
        elif data_end > limit:
            found.bad += 1
            found.say(f"block {index} ends behind the image (at {place:#x}): content is lost")
        elif place < found.end:
            found.over.append((index, place))
            found.say(f"block {index} lies over another one (at {place:#x})")
        else:
            found.used.append((place, index))
            found.pass_over(place, place + length, length)
    for start, stop in structures:
        found.pass_over(start, stop, length)
    found.end = min(found.end, _whole(limit)) if found.bad else found.end
    return found


def _front(image: BlockImage, first: int) -> int:
    """Where blocks may begin, if the first one begins at an offset; bytes.

    XenServer keeps a map of full blocks behind the block table, of which nothing else tells.
    """
    if image.footers.footer.creator == TAPDISK:
        return first
    return FOOTER_BYTES


def _whole(offset: int) -> int:
    return -(-offset >> SECTOR_SHIFT) << SECTOR_SHIFT


def check(image: Image, repair: str) -> CheckResult:
    """As `td_check`."""
    if not isinstance(image, BlockImage):
        return CheckResult(image_end_offset=image.file.size)
    found = scan(image)
    result = _result(image, found)
    if repair == "all" and (found.over or image.footers.damage):
        _mend(image, found)
        found = scan(image)
        before, result = result, _result(image, found)
        result.messages = before.messages
        result.corruptions_fixed = before.corruptions - result.corruptions
    if repair and result.leaks and not found.bad and not found.over:
        _cut(image, found)
        before, result = result, _result(image, scan(image))
        result.messages = before.messages
        result.corruptions_fixed = before.corruptions_fixed
        result.leaks_fixed = before.leaks - result.leaks
    return result


def _result(image: BlockImage, found: Scan) -> CheckResult:
    damaged = image.footers.damage
    length = image.table_bytes + image.header.block_size
    tail = image.footers.at - found.end
    gaps = sum((end - at) // length for at, end in found.gaps)
    return CheckResult(
        corruptions=len(found.over) + found.bad + (damaged in (END_DAMAGED, COPY_DAMAGED)),
        leaks=gaps + (max(tail // length, 1) if tail > _PAGE else 0),
        total_clusters=len(image.blocks.entries),
        allocated_clusters=found.stored,
        image_end_offset=found.end,
        messages=[*([damaged] if damaged else []), *found.said],
    )


def _mend(image: BlockImage, found: Scan) -> None:
    """Good footers at both ends, and a place of its own for each block."""
    file, length = image.file, image.table_bytes + image.header.block_size
    if not image.footers.copy:
        file.write_metadata(0, image.packed_footer)
        file.make_safe()
    end, moves = max(_whole(image.footers.at), found.end), []
    for index, place in found.over:
        bitmap = image.next_place(end)
        end = bitmap + length
        moves.append((index, place, bitmap))
        copy(file, place, bitmap, length)
    put_footer(image, end)
    _name(image, moves)


def _name(image: BlockImage, moves: list[tuple[int, int, int]]) -> None:
    """Let the block table name blocks where they were copied to, on disk when this returns."""
    image.file.make_safe()
    for index, _, bitmap in moves:
        image.blocks.set(index, [bitmap >> SECTOR_SHIFT])
    for offset, content in image.blocks.changes():
        image.file.write_metadata(offset, content)
    image.blocks.dirty.clear()
    image.tables.forget()
    image.file.make_safe()


def _cut(image: BlockImage, found: Scan) -> None:
    """Fill gaps with the last blocks, and let the image end behind the last one."""
    length, moves = image.table_bytes + image.header.block_size, []
    for start, end in found.gaps:
        bitmap = image.next_place(start)
        while found.used and found.used[-1][0] > start and bitmap + length <= end:
            place, index = found.used.pop()
            copy(image.file, place, bitmap, length)
            moves.append((index, place, bitmap))
            bitmap = image.next_place(bitmap + length)
    if moves:
        _name(image, moves)
        found = scan(image)
    if found.end < image.footers.at:
        put_footer(image, found.end)
