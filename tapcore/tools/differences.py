"""Every range in which two disks differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tapcore.constants import DEFAULT_SECTOR_SIZE
from tapcore.disk import Disk
from tapcore.tools.compare import pieces_of_both, rest_of
from tapcore.tools.progress import Progress
from tapcore.tools.zeroes import data_runs, differing_runs


def differing_ranges(
    one: Disk, other: Disk, *, progress: Progress | None = None
) -> Iterator[tuple[int, int]]:
    """The ranges (start, end), in bytes and whole sectors, in order, neighbours joined.

    What one disk has past the end of the other differs where it is not zero.

    Args:
        one: open.
        other: open.
        progress: told how far it is; what it raises stops the work.

    Raises:
        IOFailedError: a read failed.
    """
    tell = progress or (lambda done, total: None)
    total = max(one.size, other.size)
    yield from _joined(_differences(one, other, tell, total))
    tell(total, total)


def _differences(one: Disk, other: Disk, tell: Progress, total: int) -> Iterator[tuple[int, int]]:
    common = min(one.size, other.size)
    for a, b in pieces_of_both(one, other, common):
        tell(a.start, total)
        unit = DEFAULT_SECTOR_SIZE
        for start, end in differing_runs(a.content, b.content, a.length, unit=unit):
            yield a.start + start, a.start + end
    longer = one if one.size > common else other
    for piece in rest_of(longer, common):
        tell(piece.start, total)
        for start, end in data_runs(piece.content, piece.length, unit=DEFAULT_SECTOR_SIZE):
            yield piece.start + start, piece.start + end


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    last: tuple[int, int] | None = None
    for start, end in ranges:
        if last is not None and last[1] == start:
            last = last[0], end
            continue
        if last is not None:
            yield last
        last = start, end
    if last is not None:
        yield last
