"""Which parts of a disk are still to be copied."""

from __future__ import annotations

from typing import Final

UNIT: Final = 64 << 10
"""Bytes that one mark stands for, at least."""

MOST_MARKS: Final = 1 << 24
"""A byte of memory each: of a disk of more than 1 TiB a mark stands for more."""


class DirtyMap:
    """A mark for each unit of a disk; all are set at first.

    Args:
        size: of the disk, bytes.

    Attributes:
        unit: bytes that a mark stands for, a power of two.
        count: marks that are set.
    """

    __slots__ = ("_marks", "_size", "count", "unit")

    def __init__(self, size: int) -> None:
        self.unit = UNIT
        while size > self.unit * MOST_MARKS:
            self.unit *= 2
        self._size = size
        self.count = -(-size // self.unit)
        self._marks = bytearray(b"\1" * self.count)

    @property
    def left(self) -> int:
        """Bytes that are marked, about."""
        return min(self.count * self.unit, self._size)

    def mark(self, start: int, end: int) -> None:
        """Mark all units that a range (bytes) touches."""
        first, stop = start // self.unit, -(-end // self.unit)
        if stop - first == 1:
            self.count += 1 - self._marks[first]
            self._marks[first] = 1
        elif stop > first:
            self.count += self._marks.count(0, first, stop)
            self._marks[first:stop] = b"\1" * (stop - first)

    def clear(self, start: int, end: int) -> None:
        """Take the marks away from whole units: a range in bytes; the disk's end cuts its last."""
        first, stop = start // self.unit, -(-end // self.unit)
        self.count -= self._marks.count(1, first, stop)
        self._marks[first:stop] = bytes(stop - first)

    def next(self, start: int, most: int) -> tuple[int, int] | None:
        """The first run of marks at or behind a place.

        Args:
            start: bytes, a multiple of `unit`.
            most: bytes of the run at most, a multiple of `unit`.

        Returns:
            (start, end) in bytes; None: there is none up to the end of the disk.
        """
        first = self._marks.find(1, start // self.unit)
        if first < 0:
            return None
        stop = self._marks.find(0, first, first + most // self.unit)
        if stop < 0:
            stop = min(first + most // self.unit, len(self._marks))
        return first * self.unit, min(stop * self.unit, self._size)
