"""An open image: its reads, and the parts that are kept for the next ones.

A part is unpacked in a thread, whoever needs it waits for the same one, and the loop for none.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeAlias

import attrs

from tap_zraw.layout import Layout
from tapcore import (
    SECTOR_SHIFT,
    Answer,
    DiskDriver,
    Extent,
    ImageFile,
    ImageFormatError,
    TapError,
    content_damaged,
)

KEPT_BYTES: Final = 32 << 20
"""Content that is kept, or two parts where those are larger."""

_SECTOR: Final = 1 << SECTOR_SHIFT

Take: TypeAlias = Callable[[bytes | Exception], int]
"""Gets the content of a part, or why there is none; returns how many requests that finished."""


@attrs.define(eq=False)
class _Read:
    """One request.

    Attributes:
        answer: of the request.
        sector: first sector.
        buf: its content's place.
        left: parts that are still to come, and one more while it is being taken apart.
        failed: ranges of the disk (bytes) that could not be read, and why.
    """

    answer: Answer
    sector: int
    buf: memoryview
    left: int = 1
    failed: list[tuple[int, int, Exception]] = attrs.field(factory=list)


class Image:
    """What `dd.private` is.

    Args:
        dd: the image in its chain.
        file: the image file.
        layout: of the disk in it.
        facts: for `td_info`.
    """

    def __init__(
        self, dd: DiskDriver[Any], file: ImageFile, layout: Layout, facts: dict[str, Any]
    ) -> None:
        self.file = file
        self.layout = layout
        self.facts = facts
        self._dd = dd
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._most = max(KEPT_BYTES // max(layout.largest, 1), 2)
        self._wanted: dict[int, list[Take]] = {}

    # ---- requests ---------------------------------------------------------------------------

    def read(self, sector: int, buf: memoryview, answer: Answer) -> int:
        """Read a range; returns how many requests were finished inside this call."""
        start = at = sector << SECTOR_SHIFT
        stop = min(start + len(buf), self.layout.size)
        buf[max(stop - start, 0) :] = bytes(len(buf) - max(stop - start, 0))
        request = _Read(answer, sector, buf)
        finished = 0
        while at < stop:
            index = self.layout.find(at)
            first, end = self.layout.bounds(index)
            until = min(end, stop)
            request.left += 1
            place = buf[at - start : until - start]
            finished += self._want(index, partial(self._take, request, at, at - first, place))
            at = until
        return finished + self._part_done(request)

    def _take(
        self, request: _Read, at: int, skip: int, place: memoryview, found: bytes | Exception
    ) -> int:
        if isinstance(found, Exception):
            request.failed.append((at, at + len(place), found))
        else:
            place[:] = memoryview(found)[skip : skip + len(place)]
        return self._part_done(request)

    def _part_done(self, request: _Read) -> int:
        request.left -= 1
        if request.left:
            return 0
        first, count = request.sector, len(request.buf) >> SECTOR_SHIFT
        if not request.failed:
            return request.answer(0, first, count)
        return self._answer_failed(request, first, first + count)

    def _answer_failed(self, request: _Read, at: int, end: int) -> int:
        """Sector by sector: what came, and what did not."""
        finished = 0
        for start, stop, exc in sorted(request.failed, key=lambda each: each[0]):
            lost = max(start >> SECTOR_SHIFT, at)
            until = min(-(-stop >> SECTOR_SHIFT), end)
            if lost >= until:
                continue
            if at < lost:
                finished += request.answer(0, at, lost - at)
            finished += request.answer(self._errno(exc, lost, until), lost, until - lost)
            at = until
        return finished + (request.answer(0, at, end - at) if at < end else 0)

    def _errno(self, exc: Exception, sector: int, until: int) -> int:
        if isinstance(exc, ImageFormatError):
            return content_damaged(self._dd, sector, until - sector, exc.message)
        return -(getattr(exc, "errno", 0) or 5)

    # ---- parts ------------------------------------------------------------------------------

    def _want(self, index: int, take: Take) -> int:
        content = self._kept.get(index)
        if content is not None:
            self._kept.move_to_end(index)
            return take(content)
        if self.layout.is_zero(index):
            start, stop = self.layout.bounds(index)
            return take(bytes(stop - start))
        if index in self._wanted:
            self._wanted[index].append(take)
            return 0
        self._wanted[index] = [take]
        self._fetch(index)
        return 0

    def _fetch(self, index: int) -> None:
        found: list[bytes | Exception] = []

        def work() -> int:
            try:
                found.append(self.layout.unpack(index))
            except (TapError, OSError) as exc:
                found.append(exc)
            return 0

        def unpacked(res: int) -> int:
            return self._give(index, OSError(-res, os.strerror(-res)) if res else found[0])

        self.file.queue_work(work, unpacked)

    def _give(self, index: int, found: bytes | Exception) -> int:
        if not isinstance(found, Exception):
            self._kept[index] = found
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return sum(take(found) for take in self._wanted.pop(index))

    # ---- extents ----------------------------------------------------------------------------

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """What is zeroes, as far as that is told by little, and what is compressed."""
        end = sector + nb_sectors
        for start, stop in self._zeroes(sector << SECTOR_SHIFT, end << SECTOR_SHIFT):
            first = -(-start >> SECTOR_SHIFT)
            last = end if stop >= self.layout.size else min(stop >> SECTOR_SHIFT, end)
            if first >= last:
                continue
            if sector < first:
                yield Extent(sector, first - sector, "compressed")
            yield Extent(first, last - first, "zero")
            sector = last
        if sector < end:
            yield Extent(sector, end - sector, "compressed")

    def _zeroes(self, at: int, stop: int) -> Iterator[tuple[int, int]]:
        """Runs of zeroes in a range of bytes, neighbours joined."""
        stop = min(stop, self.layout.size)
        while at < stop:
            index, start = self.layout.find(at), at
            until = self.layout.zeroes_until(index, self.layout.find(stop - 1) + 1)
            if index < until:
                at = min(self.layout.bounds(until - 1)[1], stop)
                yield start, at
            else:
                at = min(self.layout.bounds(index)[1], stop)

    def close(self) -> None:
        """Wait for what is under way, and let go of everything."""
        try:
            self.file.close()
        finally:
            self.layout.close()
