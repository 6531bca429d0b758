"""Where a host file has data and where holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


class HoleMap:
    """Where a host file has data and where holes, asked of the kernel and remembered.

    One run of data is remembered, because finding the end of a run can walk the whole file. To
    call a fresh hole "data" is harmless (it is read as zeroes); the other way round never happens,
    since only what the kernel called data is remembered.
    """

    __slots__ = ("_data_end", "_data_start", "_fd", "_supported")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._supported = True
        self._data_start = self._data_end = 0

    def forget(self) -> None:
        """A hole was punched."""
        self._data_start = self._data_end = 0

    def run(self, offset: int, end: int) -> tuple[int, bool]:
        """What lies at an offset.

        Args:
            offset: bytes.
            end: bytes; nothing past it is of interest.

        Returns:
            Where the run ends (at most `end`), and whether it is data.
        """
        if self._data_start <= offset < self._data_end:
            return min(self._data_end, end), True
        if not self._supported:
            return end, True
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
            if data > offset:
                return min(data, end), False
            hole = os.lseek(self._fd, offset, os.SEEK_HOLE)
            if hole <= offset:  # punched between the two questions
                return self.run(offset, end)
        except OverflowError:  # no file reaches there
            return end, False
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no data up to the end of the file
                return end, False
            self._supported = False
            return end, True
        self._data_start, self._data_end = offset, hole
        return min(hole, end), True

    def runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """All runs between two byte offsets, as (start, end, is data), neighbours joined."""
        start = offset
        while offset < end:
            stop, data = self.run(offset, end)
            if stop < end and self.run(stop, end)[1] == data:
                offset = stop
                continue
            yield start, stop, data
            start = offset = stop
