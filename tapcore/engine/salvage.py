"""Reading what is left of a damaged disk: what cannot be read is noted, and taken as zeroes."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import attrs

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.engine import Engine, engine_of
from tapcore.engine.extents import MappedExtent, chain_extents
from tapcore.engine.requests import READ, Request
from tapcore.errors import TapError
from tapcore.interface.loss import Loss
from tapcore.interface.models import DiskDriver, TdState

MOST_RANGES: Final = 1000
"""Lost ranges that are kept; the rest is only counted."""

_UNIT: Final = 4096
"""Where nobody says what is wrong, so little is read at last: a page of the host's cache."""

_WINDOW: Final = 64 << 20
_PLACE: Final = re.compile(r"0x[0-9a-f]+")


@attrs.frozen
class LostRange:
    """A range of a disk that could not be read.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes.
        image: the image of the chain that should hold it.
        reason: what is wrong, where in the file.
    """

    start: int
    length: int
    image: str
    reason: str

    @property
    def end(self) -> int:
        """First byte past it."""
        return self.start + self.length


class Salvage:
    """What was lost of a disk that was read all the same.

    Attributes:
        ranges: the first ones found, in the order of the disk; neighbours of one kind are joined.
        left_out: ranges found besides.
        lost: bytes, all together.
    """

    __slots__ = ("left_out", "lost", "ranges")

    def __init__(self) -> None:
        self.ranges: list[LostRange] = []
        self.left_out = 0
        self.lost = 0

    @property
    def count(self) -> int:
        """How many ranges were lost."""
        return len(self.ranges) + self.left_out

    def note(self, start: int, end: int, image: str, reason: str) -> None:
        """A range (bytes) could not be read; what is known of it already counts once."""
        for low, high in list(self._unknown(start, end)):
            self.lost += high - low
            self._keep(LostRange(low, high - low, image, reason))

    def _unknown(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        at = bisect_right(self.ranges, start, key=lambda known: known.end)
        for known in self.ranges[at:]:
            if known.start >= end:
                break
            if start < known.start:
                yield start, known.start
            start = known.end
        if start < end:
            yield start, end

    def _keep(self, new: LostRange) -> None:
        ranges = self.ranges
        at = bisect_right(ranges, new.start, key=lambda known: known.start)
        if at < len(ranges) and _joins(new, ranges[at]):
            new = attrs.evolve(new, length=new.length + ranges.pop(at).length)
        if at and _joins(ranges[at - 1], new):
            ranges[at - 1] = attrs.evolve(ranges[at - 1], length=ranges[at - 1].length + new.length)
        elif len(ranges) < MOST_RANGES:
            ranges.insert(at, new)
        else:
            self.left_out += 1


def _joins(one: LostRange, other: LostRange) -> bool:
    """Whether the second goes on where the first ends, lost in one way but for the place."""
    if one.end != other.start or one.image != other.image:
        return False
    return _PLACE.sub("", one.reason) == _PLACE.sub("", other.reason)


class SalvagingRead:
    """A read that does not fail: around what cannot be read, all else is.

    Args:
        state: of the disk.
        salvage: gets what is lost.
        request: a READ; it is answered with status 0.
    """

    __slots__ = ("_engine", "_open", "_request", "_salvage", "_state")

    def __init__(self, state: TdState, salvage: Salvage, request: Request) -> None:
        self._state = state
        self._engine: Engine = engine_of(state)
        self._salvage = salvage
        self._request = request
        self._open = 1  # until all is begun

    def begin(self) -> None:
        """Submit it; the request may be answered inside this call."""
        self._read(self._request.offset, self._request.offset + self._request.length)
        self._close()

    def _close(self) -> None:
        self._open -= 1
        if not self._open:
            self._request.status = 0
            self._request.done(self._request)

    def _part(self, start: int, end: int) -> memoryview:
        assert self._request.buf is not None
        return self._request.buf[start - self._request.offset : end - self._request.offset]

    def _read(self, start: int, end: int) -> None:
        losses = self._state.losses
        since = losses.count

        def finished(request: Request) -> None:
            if request.status:
                sectors = start >> SECTOR_SHIFT, -(-end >> SECTOR_SHIFT)
                known = losses.among(*sectors, since=since)
                self._around(start, end, known, request.status)
            self._close()

        self._open += 1
        self._engine.submit(Request(READ, start, end - start, self._part(start, end), finished))

    def _around(self, start: int, end: int, known: list[Loss], status: int) -> None:
        """A part of the range cannot be read: the rest is tried again."""
        for loss in known:
            low = max(loss.sector << SECTOR_SHIFT, start)
            high = min(loss.end << SECTOR_SHIFT, end)
            if low >= high:
                continue
            if start < low:
                self._read(start, low)
            self._lose(low, high, loss.image, loss.reason)
            start = high
        if not known:
            self._halve(start, end, status)
        elif start < end:
            self._read(start, end)

    def _halve(self, start: int, end: int, status: int) -> None:
        middle = (start + end) // 2 // _UNIT * _UNIT
        if middle <= start:
            middle = (start // _UNIT + 1) * _UNIT
        if middle >= end:
            self._lose(start, end, self._state.image.name, os.strerror(-status))
            return
        self._read(start, middle)
        self._read(middle, end)

    def _lose(self, start: int, end: int, image: str, reason: str) -> None:
        self._part(start, end)[:] = bytes(end - start)
        self._salvage.note(start, end, image, reason)


def salvaged_extents(dd: DiskDriver, offset: int, length: int) -> Iterator[MappedExtent]:
    """As `chain_extents`, where tables may be damaged: what they do not tell is to be read.

    No run says where it lies in a file: all is to go by way of `SalvagingRead`.

    Args:
        dd: the child.
        offset: bytes.
        length: bytes, inside the disk.
    """
    end = offset + length
    unit = max(min(each.cluster_size or _UNIT for each in dd.chain()), _UNIT)
    window, skip = _WINDOW, unit
    while offset < end:
        size = min(window, end - offset)
        try:
            runs = list(chain_extents(dd, offset, size))
        except (TapError, OSError):
            if size > unit:
                window = max(size // 2 // unit * unit, unit)
                continue
            # damaged tables map much: what is behind them is read, not asked for, if need be
            size = min(skip, end - offset)
            runs = [MappedExtent(offset, size, 0, "data", present=True)]
            skip = min(skip * 2, _WINDOW)
            window = unit
        else:
            window, skip = min(window * 2, _WINDOW), unit
        for run in runs:
            yield run if run.fd is None else attrs.evolve(run, fd=None)
        offset += size
