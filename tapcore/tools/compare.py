"""Do two disks have the same content?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import attrs

from tapcore.disk import Disk
from tapcore.tools.plan import pairs
from tapcore.tools.progress import Progress
from tapcore.tools.readahead import Piece, read_ahead
from tapcore.tools.zeroes import first_difference, first_nonzero

_Range = tuple[int, int, None]


@attrs.frozen
class Comparison:
    """What was found.

    Attributes:
        identical: the same, as far as was asked.
        reason: "size", "allocation" or "content", or empty.
        offset: where they differ first (bytes), for allocation and content.
        sizes_differ: the sizes differ, which only `strict` minds.
    """

    identical: bool
    reason: str = ""
    offset: int | None = None
    sizes_differ: bool = False


def compare_disks(
    one: Disk, other: Disk, *, strict: bool = False, progress: Progress | None = None
) -> Comparison:
    """Compare, as `qemu-img compare` does: a longer disk may go on with zeroes.

    Ranges that both disks know to be zeroes are not read.

    Args:
        one: open.
        other: open.
        strict: sizes, and what is allocated, must be the same too.
        progress: told how far it is; what it raises stops the work.

    Raises:
        IOFailedError: a read failed.
    """
    total = max(one.size, other.size)
    differ = one.size != other.size
    if strict and differ:
        return Comparison(False, "size", sizes_differ=True)
    tell = progress or (lambda done, total: None)
    common = min(one.size, other.size)
    # a difference in content before the first one in allocation comes first
    allocation = _allocation_differs(one, other) if strict else None
    at = _content_differs(one, other, common if allocation is None else allocation, tell, total)
    if at is None and allocation is not None:
        return Comparison(False, "allocation", allocation)
    if at is None and differ:
        at = _first_content(one if one.size > common else other, common, tell)
    tell(total, total)
    if at is None:
        return Comparison(True, sizes_differ=differ)
    return Comparison(False, "content", at, sizes_differ=differ)


def _allocation_differs(one: Disk, other: Disk) -> int | None:
    for start, _, a, b in pairs(one, other, 0, one.size):
        if (a.kind == "zero", a.present) != (b.kind == "zero", b.present):
            return start
    return None


def _content_differs(one: Disk, other: Disk, length: int, tell: Progress, total: int) -> int | None:
    """Where the first `length` bytes differ first."""
    for a, b in pieces_of_both(one, other, length):
        tell(a.start, total)
        differs = first_difference(a.content, b.content, a.length)
        if differs is not None:
            return a.start + differs
    return None


def pieces_of_both(
    one: Disk, other: Disk, length: int
) -> Iterator[tuple[Piece[None], Piece[None]]]:
    """The same pieces of the first `length` bytes of both, but for what both know to be zero."""
    left, right = itertools.tee(_to_be_read(one, other, length))
    return zip(read_ahead(one, left), read_ahead(other, right), strict=True)


def rest_of(disk: Disk, start: int) -> Iterator[Piece[None]]:
    """What a disk holds from an offset on (bytes), but for what it knows to be zero."""
    tail = ((e.start, e.length, None) for e in disk.extents(start) if e.kind != "zero")
    return read_ahead(disk, tail)


def _to_be_read(one: Disk, other: Disk, length: int) -> Iterator[_Range]:
    for start, end, a, b in pairs(one, other, 0, length):
        if a.kind != "zero" or b.kind != "zero":
            yield start, end - start, None


def _first_content(disk: Disk, start: int, tell: Progress) -> int | None:
    """The first byte from `start` on that is not zero."""
    for piece in rest_of(disk, start):
        tell(piece.start, disk.size)
        at = first_nonzero(piece.content, piece.length)
        if at is not None:
            return piece.start + at
    return None
