"""Moving content between disks: reads run ahead of writes, both many at once, in bounded memory.

One loop drives both disks. A job's range is cut into pieces; each is read into a buffer of its own,
looked at, and written; the pieces are looked at in order, so that a target is filled from front to
back, but neither their reads nor their writes wait for each other.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from tapcore.buffers import ZEROES, long_bytearray
from tapcore.constants import SECTOR_SHIFT
from tapcore.disk import Disk
from tapcore.engine import READ, WRITE, WRITE_COMPRESSED, ZERO, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.errors import IOFailedError
from tapcore.interface.damage import known_failure
from tapcore.tools.plan import How, Job
from tapcore.tools.progress import Progress
from tapcore.tools.zeroes import ZERO_BLOCK, data_runs, differing_runs

PIECE_BYTES: Final = 1 << 20
MEMORY_BYTES: Final = 16 << 20
"""For the content under way; a piece of huge clusters may need more."""

_WRITES: Final = 4
"""Pieces being written, while all reads come from the page cache: enough to keep a thread busy, and
few enough for the processor's cache to hold them from the read to the write."""

_ZERO_WINDOW: Final = 1 << 30


def write_unit(target: Disk) -> int:
    """Bytes in which a disk is best written, and zeroes in it are worth leaving out."""
    return max(target.cluster_size, ZERO_BLOCK)


class _Piece:
    """A part of a job, at most `Transfer.piece` bytes.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes.
        how: what is to be done.
        content: the source's, where it is read.
        below: what it is compared with.
        reads: requests under way that fill the buffers.
        writes: requests under way that write from them.
    """

    __slots__ = ("below", "content", "how", "length", "reads", "start", "writes")

    def __init__(self, start: int, length: int, how: How) -> None:
        self.start = start
        self.length = length
        self.how = how
        self.content: bytearray | None = None
        self.below: bytearray | None = None
        self.reads = 0
        self.writes = 0

    @property
    def end(self) -> int:
        """First byte past it."""
        return self.start + self.length


class Transfer:
    """The work of one conversion, commit or rebase.

    Args:
        source: open.
        target: open for writing; may be the source itself, where ranges are copied that it does not
            hold itself.
        against: what "differ" compares with; what lies past its end counts as zeroes.
        fresh: the target reads as zeroes everywhere, so zeroes are left out.
        compressed: store data compressed.
        hold_zeroes: zeroes must be the target's own, not only shine through from what it has below
            now.
        progress: told how far it is; what it raises stops the work.

    Attributes:
        written: bytes of data, without zeroes.
    """

    def __init__(
        self,
        source: Disk,
        target: Disk,
        *,
        against: Disk | None = None,
        fresh: bool = False,
        compressed: bool = False,
        hold_zeroes: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._source, self._target, self._against = source, target, against
        self._fresh = fresh
        self._compressed = compressed
        self._hold_zeroes = hold_zeroes
        self._progress = progress
        disks = [disk for disk in (source, target, against) if disk is not None]
        self._loop = EngineLoop(*(engine_of(disk.state) for disk in disks))
        self._unit = write_unit(target)
        self._piece = max(PIECE_BYTES // self._unit * self._unit, self._unit)
        share = self._piece * (1 if against is None else 2)
        self._room = max(MEMORY_BYTES // share, 2)
        self._free: list[bytearray] = []
        self._waiting: deque[_Piece] = deque()  # to be looked at, in order
        self._pieces = 0
        self._requests = 0
        self._failure: IOFailedError | None = None
        self._ended = False
        self.written = 0

    def run(self, jobs: Iterable[Job]) -> int:
        """Do all jobs, which are in order and do not overlap.

        Returns:
            Bytes of data written, without zeroes.

        Raises:
            IOFailedError: a read or write failed; the text says which. Nothing is under way any
                more, whatever stopped the work, but for what was broken off (Ctrl-C).
        """
        coming = self._cut(jobs)
        try:
            while not self._ended or self._pieces:
                self._step(coming)
        finally:
            self._loop.finish()
        self._tell(self._source.size)
        return self.written

    def _step(self, coming: Iterator[_Piece]) -> None:
        while not self._ended and not self._full():
            piece = next(coming, None)
            if piece is None:
                self._ended = True
                break
            self._begin(piece)
            self._look_at_ready()
        self._loop.turn()
        self._look_at_ready()
        self._loop.turn()
        if self._requests and (self._ended or self._full()):
            self._loop.wait()
        if self._failure is not None:
            raise self._failure

    def _full(self) -> bool:
        if self._pieces >= self._room:
            return True
        # reading further ahead is for reads that take time, and compressing for every processor
        return self._pieces >= _WRITES and not self._waiting and not self._compressed

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._source.size)

    # ---- cutting ----------------------------------------------------------------------------

    def _cut(self, jobs: Iterable[Job]) -> Iterator[_Piece]:
        """Pieces that end at multiples of their size; neighbouring jobs are joined before."""
        start = end = 0
        how: How = "copy"
        for job in jobs:
            if (job.start, job.how) != (end, how):
                if start < end:
                    yield _Piece(start, end - start, how)
                start, how = job.start, job.how
            end = job.end
            size = _ZERO_WINDOW if how == "zero" else self._piece
            while (stop := (start // size + 1) * size) <= end:
                yield _Piece(start, stop - start, how)
                start = stop
        if start < end:
            yield _Piece(start, end - start, how)

    # ---- reading ----------------------------------------------------------------------------

    def _begin(self, piece: _Piece) -> None:
        self._pieces += 1
        self._waiting.append(piece)
        if piece.how == "zero":
            return
        piece.content = self._buffer()
        self._read(self._source, piece, piece.content, piece.length)
        if piece.how == "differ":
            assert self._against is not None
            piece.below = self._buffer()
            held = max(min(piece.length, self._against.size - piece.start), 0)
            piece.below[held : piece.length] = bytes(piece.length - held)
            if held:
                self._read(self._against, piece, piece.below, held)

    def _buffer(self) -> bytearray:
        return self._free.pop() if self._free else long_bytearray(self._piece)

    def _read(self, disk: Disk, piece: _Piece, buffer: bytearray, length: int) -> None:
        since = disk.state.losses.count

        def finished(request: Request) -> None:
            self._requests -= 1
            piece.reads -= 1
            if request.status:
                what = f"read failed between {piece.start} and {piece.end}"
                self._fail(disk, what, request, since)

        self._requests += 1
        piece.reads += 1
        view = memoryview(buffer)[:length]
        disk.submit(Request(READ, piece.start, length, view, finished))

    def _fail(self, disk: Disk, what: str, request: Request, since: int) -> None:
        if self._failure is not None:
            return
        start, end, status = request.offset, request.offset + request.length, request.status
        op = "read" if request.op == READ else "write"
        self._failure = known_failure(disk.state, op, start, end, status, since=since)
        if self._failure is None:
            text = f"{what}: {os.strerror(-status)}"
            self._failure = IOFailedError(text, image=disk.state.image.name, errno=-status)

    # ---- writing ----------------------------------------------------------------------------

    def _look_at_ready(self) -> None:
        while self._waiting and not self._waiting[0].reads and self._failure is None:
            piece = self._waiting.popleft()
            self._tell(piece.start)
            self._write(piece)

    def _write(self, piece: _Piece) -> None:
        piece.writes = 1  # until all of its requests are made
        for start, end, zero in self._changes(piece):
            if zero:
                self._zero(piece, piece.start + start, piece.start + end)
            else:
                self.written += end - start
                self._store(piece, start, end)
        self._wrote(piece)

    def _changes(self, piece: _Piece) -> Iterator[tuple[int, int, bool]]:
        """What of a piece has to be written: (start, end, is zero), in bytes from its start."""
        if piece.content is None:
            yield 0, piece.length, True
            return
        unit = self._unit
        first = unit - piece.start % unit
        runs: Iterable[tuple[int, int]] = ((0, piece.length),)
        if piece.below is not None:
            runs = differing_runs(piece.content, piece.below, piece.length, unit=unit, first=first)
        for start, end in runs:
            step = unit - (piece.start + start) % unit
            at = start
            for lo, hi in data_runs(piece.content, end, start=start, unit=unit, first=step):
                if at < lo:
                    yield at, lo, True
                yield lo, hi, False
                at = hi
            if at < end:
                yield at, end, True

    def _store(self, piece: _Piece, start: int, end: int) -> None:
        assert piece.content is not None
        op = WRITE_COMPRESSED if self._compressed else WRITE
        self._change(piece, op, piece.start + start, memoryview(piece.content)[start:end])

    def _change(self, piece: _Piece, op: int, offset: int, view: memoryview) -> None:
        since = self._target.state.losses.count

        def finished(request: Request) -> None:
            self._requests -= 1
            if op == WRITE_COMPRESSED and request.status == -errno.EOPNOTSUPP:
                self._fail(self._target, "cannot hold compressed data (-c)", request, since)
            elif request.status:
                self._fail(self._target, "write failed", request, since)
            self._wrote(piece)

        self._requests += 1
        piece.writes += 1
        self._target.submit(Request(op, offset, len(view), view, finished))

    def _wrote(self, piece: _Piece) -> None:
        piece.writes -= 1
        if piece.writes:
            return
        self._pieces -= 1
        for buffer in (piece.content, piece.below):
            if buffer is not None:
                self._free.append(buffer)

    # ---- zeroes -----------------------------------------------------------------------------

    def _zero(self, piece: _Piece, start: int, end: int) -> None:
        """Make a range of the target read as zeroes, where it does not yet."""
        if self._fresh:
            return
        if self._hold_zeroes:
            self._make_zero(piece, start, end)
            return
        for run in list(self._target.extents(start, length=end - start)):
            if run.kind != "zero":
                self._make_zero(piece, run.start, run.end)

    def _make_zero(self, piece: _Piece, start: int, end: int) -> None:
        since = self._target.state.losses.count

        def finished(request: Request) -> None:
            self._requests -= 1
            if request.status:
                self._fail(self._target, "write failed", request, since)
            elif self._hold_zeroes:
                self._write_what_shines_through(piece, start, end)
            self._wrote(piece)

        self._requests += 1
        piece.writes += 1
        self._target.submit(Request(ZERO, start, end - start, None, finished))

    def _write_what_shines_through(self, piece: _Piece, start: int, end: int) -> None:
        """A driver may leave a hole where zeroes are below; it would show the new parent."""
        leaf = self._target.state.disks
        first, count = start >> SECTOR_SHIFT, (end - start) >> SECTOR_SHIFT
        for extent in list(leaf.drv.td_extents(leaf, first, count)):
            if extent.kind != "unallocated":
                continue
            for at in range(extent.sector << SECTOR_SHIFT, extent.end << SECTOR_SHIFT, len(ZEROES)):
                size = min(len(ZEROES), (extent.end << SECTOR_SHIFT) - at)
                self._change(piece, WRITE, at, ZEROES[:size])
