"""Moving blocks to other places, and dropping them, so that a crash at any moment loses nothing.

Blocks are copied to places that nothing lies in; then the block table is changed, through the log;
then, where that is wanted, the file is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tap_vhdx.bat import ENTRY_BYTES, PLACE, STATE, ZERO
from tap_vhdx.headers import MIB
from tap_vhdx.image import Image
from tap_vhdx.survey import BITMAP, KEPT, Survey, survey, unpacked

_PIECE: Final = 64 << 10
"""Bytes that are copied at once; of zeroes they become a hole."""


def length_of(image: Image, used: int) -> int:
    """How much of the file something takes, bytes; see `survey.packed`."""
    return MIB if unpacked(used)[2] == BITMAP else image.layout.disk.block_size


def move(image: Image, moves: list[tuple[int, int]]) -> None:
    """Give blocks other places; all is on disk when this returns.

    Args:
        image: open for writing, with nothing in flight.
        moves: blocks (see `survey.packed`), each with the new place, bytes.

    Raises:
        OSError, TapError: the image is as it was, or some of them are moved.
    """
    if not moves:
        return
    for used, target in moves:
        _copy(image, unpacked(used)[0], target, length_of(image, used))
    enter(image, ((used, target) for used, target in moves), keeps_state=True)


def drop(image: Image, blocks: list[int]) -> None:
    """Let blocks be zeroes without a place; raises as `move`."""
    if blocks:
        enter(image, ((used, ZERO) for used in blocks), keeps_state=False)


def enter(image: Image, changes: Iterable[tuple[int, int]], *, keeps_state: bool) -> None:
    """Change entries of the block table, on disk when this returns.

    Args:
        image: open for writing, with nothing in flight.
        changes: what they are of (see `survey.packed`), and what they are to be.
        keeps_state: that is a place, and the state stays.
    """
    pages, writes = image.pages, []
    for used, new in changes:
        _, number, kind = unpacked(used)
        geometry = pages.geometry
        at = geometry.bitmap_entry(number) if kind == BITMAP else geometry.entry(number)
        entry = (new & PLACE) | (pages.entry(at) & STATE) if keeps_state else new
        writes.append((pages.entry_place(at), entry.to_bytes(ENTRY_BYTES, "little")))
    image.log.commit(writes, content=False)
    image.tables.forget()


def _copy(image: Image, source: int, target: int, length: int) -> None:
    file = image.file
    file.truncate_up(target + length)
    for at in range(0, length, _PIECE):
        content = file.read_metadata(source + at, min(_PIECE, length - at))
        if any(content):
            file.write_metadata(target + at, content)
        elif res := file.zero_blocking(target + at, len(content), True):
            raise OSError(-res, "a block cannot be moved")


def close_gaps(image: Image) -> None:
    """The last blocks go into gaps, and the file ends behind the last one; raises as `move`."""
    move(image, _into_gaps(image, survey(image.pages)))
    cut(image, survey(image.pages).last)


def _into_gaps(image: Image, found: Survey) -> list[tuple[int, int]]:
    """The last blocks, each with a place before it that nothing lies in."""
    moves = list[tuple[int, int]]()
    gaps = list(found.gaps)
    behind = [used for used in found.used if unpacked(used)[2] != KEPT]
    while gaps and behind:
        start, length = gaps.pop()
        while behind:
            size = length_of(image, behind[-1])
            if size > length or unpacked(behind[-1])[0] <= start:
                break
            moves.append((behind.pop(), start))
            start, length = start + size, length - size
    return moves


def cut(image: Image, end: int) -> None:
    """Let a file end at an offset (bytes), behind all that is in use.

    Raises:
        OSError: as the system says.
    """
    image.log.end()  # what it says of the file's length is not true any more
    if image.file.size > end:
        image.file.resize(end)
        image.file.make_safe()
