"""What the disk shows around a write that does not cover its cluster: read, to be written anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tapcore.clusters.mapped import MappedDisk
from tapcore.clusters.reading import Reader
from tapcore.constants import BLK_NOT_ALLOCATED, SECTOR_SHIFT


class Filling:
    """Fills parts of a buffer with what the disk shows there, its parents included.

    Args:
        disk: that is read.
        reader: of it.
        first: sector that the buffer begins with.
        view: the buffer.
        done: called with 0 or -errno when all parts are there; returns how many requests that
            finished.
    """

    __slots__ = ("_disk", "_done", "_first", "_left", "_reader", "_status", "_view")

    def __init__(
        self,
        disk: MappedDisk,
        reader: Reader,
        first: int,
        view: memoryview,
        done: Callable[[int], int],
    ) -> None:
        self._disk = disk
        self._reader = reader
        self._first = first
        self._view = view
        self._done = done
        self._left = 0
        self._status = 0

    def start(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Begin.

        Args:
            ranges: [start, end) in sectors.

        Returns:
            How many requests were finished, if everything was there at once.
        """
        self._left = 1  # until everything was asked for
        for start, end in ranges:
            self._left += end - start
            self._reader.read(start, end, self._part(start, end), self._answered)
        return self._less(0, 1)

    def _part(self, start: int, end: int) -> memoryview:
        first = self._first
        return self._view[(start - first) << SECTOR_SHIFT : (end - first) << SECTOR_SHIFT]

    def _answered(self, res: int, sector: int, nb_sectors: int) -> int:
        if res != BLK_NOT_ALLOCATED:
            return self._less(res, nb_sectors)
        stop = sector + nb_sectors
        held = self._disk.below(sector, stop)
        if held > sector:
            part = self._part(sector, held)
            self._disk.read_below(sector, part, lambda res: self._less(res, held - sector))
        return self._less(0, stop - held)  # zeroes, as the buffer is made of them

    def _less(self, res: int, nb_sectors: int) -> int:
        self._status = self._status or res
        self._left -= nb_sectors
        return 0 if self._left or not nb_sectors else self._done(self._status)
