"""A repair before it happens: what it would write is kept aside, read back, and judged.

Only when what could be read before reads the same afterwards, all is written to the image file, in
the order and with the barriers of the rehearsal. Until then nothing of the file has changed.
"""

from __future__ import annotations

import errno
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, Literal

import attrs

from tapcore import ImageFile

_IN_MEMORY: Final = 8 << 20
"""Bytes kept in memory; what is more lies in a file without a name."""

_PIECE: Final = 1 << 20


@attrs.frozen
class Step:
    """Something that a repair does to the file.

    Attributes:
        kind: "write", "grow" (to `offset` bytes) or "flush".
        offset: bytes.
        length: of a write, bytes.
        place: where its content lies among what is kept aside, bytes.
    """

    kind: Literal["write", "grow", "flush"]
    offset: int = 0
    length: int = 0
    place: int = 0


class Ranges:
    """Ranges of a file that were written, each with the place of its content; none overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._places: list[int] = []

    def add(self, start: int, end: int, place: int) -> None:
        """Written anew: what an older one has there goes."""
        low, high = self._touched(start, end)
        kept: list[tuple[int, int, int]] = []
        if low < high and self._starts[low] < start:
            kept.append((self._starts[low], start, self._places[low]))
        kept.append((start, end, place))
        if low < high and self._ends[high - 1] > end:
            last = high - 1
            kept.append((end, self._ends[last], self._places[last] + end - self._starts[last]))
        self._starts[low:high] = [each[0] for each in kept]
        self._ends[low:high] = [each[1] for each in kept]
        self._places[low:high] = [each[2] for each in kept]

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """Numbers of the ranges that overlap: the first, and the one behind the last."""
        low = bisect_right(self._ends, start)
        high = low
        while high < len(self._starts) and self._starts[high] < end:
            high += 1
        return low, high

    def touch(self, start: int, end: int) -> bool:
        """Whether something between two offsets was written."""
        low = bisect_right(self._ends, start)
        return low < len(self._starts) and self._starts[low] < end

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """What was written between two offsets: (start, end, place)."""
        low, high = self._touched(start, end)
        for number in range(low, high):
            first = max(self._starts[number], start)
            skip = first - self._starts[number]
            yield first, min(self._ends[number], end), self._places[number] + skip


class Rehearsal(ImageFile):
    """Stands for an image file while a repair is tried; the file itself is only read.

    Args:
        file: the image file.

    Attributes:
        steps: what was done, in order.
        writes: how many of these are writes.
        written: where.
    """

    def __init__(self, file: ImageFile) -> None:  # not super(): it opens and owns nothing
        self._file = file
        self.fd = file.fd
        self.path = file.path
        self.read_only = file.read_only
        self.size = file.size
        self.in_flight = 0
        self.io_fd = file.io_fd
        self.steps: list[Step] = []
        self.writes = 0
        self.written = Ranges()
        self._kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._end = 0

    def forget(self) -> None:
        """What was kept aside is not needed any more."""
        self._kept.close()

    # ---- as an image file ---------------------------------------------------------------------

    def read_metadata(self, offset: int, length: int) -> bytes:
        """What the file would hold."""
        found = self._file.read_metadata(offset, length)
        if not self.written.touch(offset, offset + length):
            return found
        content = bytearray(found)
        for start, end, place in self.written.within(offset, offset + length):
            self._kept.seek(place)
            content[start - offset : end - offset] = self._kept.read(end - start)
        return bytes(content)

    def metadata_now(self, offset: int, length: int) -> bytes | None:
        """The same: nothing else waits meanwhile."""
        return self.read_metadata(offset, length)

    def write_metadata(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Kept aside."""
        length = memoryview(data).nbytes
        if not length:
            return
        self._kept.seek(self._end)
        self._kept.write(data)
        self.steps.append(Step("write", offset, length, self._end))
        self.writes += 1
        self.written.add(offset, offset + length, self._end)
        self._end += length
        self.size = max(self.size, offset + length)

    def truncate_up(self, size: int) -> None:
        """A device cannot grow; for a file that is noted."""
        if size <= self.size:
            return
        if self._file.fixed_size:
            raise OSError(errno.ENOSPC, "the block device is full")
        self.steps.append(Step("grow", size))
        self.size = size

    def flush_blocking(self) -> int:
        """A barrier between what comes before and after it."""
        if self.steps and self.steps[-1].kind != "flush":
            self.steps.append(Step("flush"))
        return 0

    def discard_blocking(self, offset: int, length: int) -> int:
        """A repair gives no space back to the file system."""
        return 0

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Data and holes, in order: of the file, and what was written is data."""
        known = min(length, max(self._file.size - offset, 0))
        for start, end, data in self._file.runs(offset, known) if known else ():
            if data:
                yield start, end, True
            else:
                yield from self._with_written(start, end)
        if known < length:
            yield from self._with_written(offset + known, offset + length)

    def _with_written(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """A hole, and what was written into it."""
        for first, last, _ in self.written.within(start, end):
            if first > start:
                yield start, first, False
            yield first, last, True
            start = last
        if start < end:
            yield start, end, False

    def look_again(self) -> int:
        """Nobody else makes the file longer meanwhile."""
        return self.size

    def drain(self) -> None:
        """Nothing is ever under way."""

    def submit(self) -> None:
        """Nothing is ever queued."""

    # ---- and in earnest -----------------------------------------------------------------------

    def perform(self) -> None:
        """Do all of it to the file.

        Raises:
            OSError: as the system says; what was done until then is whole, as after a crash.
        """
        file = self._file
        for step in self.steps:
            if step.kind == "grow":
                file.truncate_up(step.offset)
            elif step.kind == "flush":
                _flush(file)
            else:
                self._write(step)
        if self.steps and self.steps[-1].kind != "flush":
            _flush(file)

    def _write(self, step: Step) -> None:
        for skip in range(0, step.length, _PIECE):
            self._kept.seek(step.place + skip)
            content = self._kept.read(min(_PIECE, step.length - skip))
            self._file.write_metadata(step.offset + skip, content)


def _flush(file: ImageFile) -> None:
    if res := file.flush_blocking():
        raise OSError(-res, "flush failed")
