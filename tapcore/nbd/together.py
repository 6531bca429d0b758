"""Small writes of one batch whose places are mapped: all of them are moved there by one call."""

from __future__ import annotations

from typing import Final, TypeAlias

from tapcore.engine.lane import Lane
from tapcore.interface.places import PlacedFile
from tapcore.nbd.receive import ReceiveBuffer

_MOST: Final = 500
"""Writes of one call, each with what lies before it: the kernel takes 1024 places."""

_BETWEEN: Final = memoryview(bytearray(4096))
"""Where headers go that lie between two writes; nobody looks at it."""

Moved: TypeAlias = tuple[int, int, int, int]
"""A write: the client's cookie; its offset; where its content begins in what was received, and its
length; in bytes."""


class Together:
    """Collects them.

    Args:
        lane: of the disk.
        received: what the client has sent; it stays where it is until they are written.

    Attributes:
        pending: those that are to be written.
    """

    __slots__ = ("_end", "_file", "_lane", "_received", "_start", "_stop", "_vector", "pending")

    def __init__(self, lane: Lane, received: ReceiveBuffer) -> None:
        self._lane = lane
        self._received = received
        self.pending: list[Moved] = []
        self._vector: list[memoryview] = []
        self._file: PlacedFile | None = None
        self._start = self._stop = self._end = 0

    def take(self, cookie: int, offset: int, body: int, length: int) -> bool:
        """A write of `MOST_WRITTEN` bytes at most; returns whether it is pending now.

        If not, those that are have to be written before it.
        """
        rx, lane, vector = self._received, self._lane, self._vector
        target = lane.to_write(offset, length)
        if target is None:
            return False
        if rx.carried is None:
            rx.wants_carried = True
            return False
        if vector:
            gap = body - self._stop
            if gap > len(_BETWEEN) or len(self.pending) == _MOST or lane.file is not self._file:
                return False
            vector.append(_BETWEEN[:gap])
        else:
            self._start, self._end, self._file = body, 0, lane.file
        vector.append(target)
        self._stop = body + length
        if lane.file_end > self._end:
            self._end = lane.file_end
        self.pending.append((cookie, offset, body, length))
        return True

    def take_one(self, offset: int, body: int, length: int) -> bool:
        """The same of one that came alone; returns whether it is in the page cache."""
        rx, lane = self._received, self._lane
        target = lane.to_write(offset, length)
        if target is None:
            return False
        carried = rx.carried
        if carried is None:
            rx.wants_carried = True
            return False
        start, end = carried.origin + body, lane.file_end
        return lane.file.fill(carried.fd, [target], start, length, end=end)

    def write(self) -> bool:
        """Do those that are pending, in their order; returns whether all are in the page cache.

        If not, each has to be written as usual.
        """
        carried, file, start = self._received.carried, self._file, self._start
        vector, self._vector = self._vector, []
        self.pending, self._file = [], None
        assert carried is not None
        assert file is not None
        return file.fill(
            carried.fd, vector, carried.origin + start, self._stop - start, end=self._end
        )
