"""Plain data into a plain file: by sharing blocks where the file system can, else by threads.

A run of a disk that lies plain in a host file, and is to lie plain in another, needs no engine and
no driver. Where it cannot be shared it goes through memory: that leaves zeroes out, and measures
quicker than copy_file_range, with which the kernel copies page by page.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from tapcore.constants import DEFAULT_SECTOR_SIZE
from tapcore.errors import IOFailedError
from tapcore.files.byname import open_host_fd
from tapcore.files.reserving import LONG_WRITE, BlockReserver
from tapcore.process.workers import Completions, Lane
from tapcore.tools.plan import Job
from tapcore.tools.progress import Progress
from tapcore.tools.zeroes import data_runs

_FICLONERANGE: Final = 0x4020940D
_CLONE_RANGE: Final = struct.Struct("qQQQ")  # struct file_clone_range
_BLOCK: Final = 4096
_MOST_SHARED: Final = 1 << 30

_PIECE: Final = 1 << 20
_PIECES: Final = 8

_FEW_GAPS: Final = 2
_WINDOW: Final = 8 << 20
"""Bytes of blocks that are taken together, in order, so that they lie together on the disk."""


class _Piece:
    """A run of at most 1 MiB on its way.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes.
        fd: of the file that holds it.
        offset: where in that, bytes.
        held: its blocks were taken before; those of zeroes are to be given back.
        reading: it has not been read yet.
        written: bytes, without zeroes.
    """

    __slots__ = ("fd", "held", "length", "offset", "reading", "start", "written")

    def __init__(self, start: int, length: int, fd: int, offset: int, *, held: bool) -> None:
        self.start = start
        self.length = length
        self.fd = fd
        self.offset = offset
        self.held = held
        self.reading = True
        self.written = 0


class PlainCopier:
    """Copies what it can of a disk's jobs into a plain file, and leaves the rest to others.

    Args:
        source: name of the image that is read, for errors.
        path: of the target, a plain file whose content is the disk's; new, so all zeroes.
        progress: told how far it is; what it raises stops the work.
        total: the disk's size, bytes.

    Attributes:
        written: bytes copied or shared.
    """

    def __init__(self, source: str, path: str, progress: Progress | None, total: int) -> None:
        self._source, self._path = source, path
        self._progress = progress
        self._total = total
        self._fd = open_host_fd(path, os.O_WRONLY)
        self._blocks = BlockReserver(self._fd)
        self._all_holes = not os.fstat(self._fd).st_blocks  # else it was to have all its blocks
        self._completions = Completions()
        self._workers = Lane()
        self._ready = select.poll()
        self._ready.register(self._completions.eventfd, select.POLLIN)
        self._buffers: list[bytearray] = []
        self._in_flight = 0
        self._failure: IOFailedError | None = None
        self._can_share = True
        self.written = 0

    def filter(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Do what can be done here; yield the other jobs.

        Raises:
            IOFailedError: a read or write failed; the text says which.
        """
        for job in jobs:
            run = job.extent
            if run is None or run.fd is None:
                yield job
                continue
            shift = run.offset - run.start
            self._copy(self._share(job, run.fd, shift), job.end, run.fd, shift)
        self._wait(0)
        self._check()

    def close(self) -> None:
        """Release, after what threads have in hand; what has not begun is not done any more."""
        self._workers.abandon()
        self._completions.close()
        os.close(self._fd)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)

    # ---- sharing ----------------------------------------------------------------------------

    def _share(self, job: Job, fd: int, shift: int) -> int:
        """Share whole blocks from the start of a job on; returns where that ended (bytes)."""
        at = job.start
        if not self._can_share or (at | (at + shift)) % _BLOCK:
            return at
        while at < job.end:
            length = min(_MOST_SHARED, (job.end - at) // _BLOCK * _BLOCK)
            if not length or not self._clone(fd, at + shift, length, at):
                break
            at += length
            self.written += length
            self._tell(at)
        return at

    def _clone(self, fd: int, offset: int, length: int, at: int) -> bool:
        try:
            fcntl.ioctl(self._fd, _FICLONERANGE, _CLONE_RANGE.pack(fd, offset, length, at))
        except OSError:  # another file system, or one without it: not asked again
            self._can_share = False
        return self._can_share

    # ---- copying ----------------------------------------------------------------------------

    def _copy(self, start: int, end: int, fd: int, shift: int) -> None:
        """Hand a run to threads, in pieces; waits where enough is under way."""
        asked, held = start, False
        while start < end:
            self._tell(start)
            self._wait(_PIECES - 1)
            self._check()
            if start == asked:
                asked = min(end, (start // _WINDOW + 1) * _WINDOW)
                held = self._take(start, asked - start)
            stop = min(end, (start // _PIECE + 1) * _PIECE)
            piece = _Piece(start, stop - start, fd, start + shift, held=held)
            self._workers.put(self._work, (piece,), self._completions, piece)
            self._in_flight += 1
            start = stop

    def _take(self, start: int, length: int) -> bool:
        """Take the blocks of a range before its pieces do, each in its turn and place."""
        if length < LONG_WRITE or not self._all_holes or not self._blocks.helps:
            return False
        if self._blocks.take(start, length):
            return True
        # perhaps the file system is all but full: then nothing may be held that is not needed
        self._wait(0)
        self._blocks.give_back(start, length)
        return False

    def _work(self, piece: _Piece) -> int:
        """In a thread: read a piece, and write it but for zeroes; returns 0 or -errno."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = bytearray(_PIECE)
        with memoryview(buffer) as view:
            _read(piece.fd, view[: piece.length], piece.offset)
            piece.reading = False
            runs = list(data_runs(buffer, piece.length))
            if piece.held:
                self._leave_out_zeroes(piece, runs)
            for start, end in runs:
                _write(self._fd, view[start:end], piece.start + start)
                piece.written += end - start
        self._buffers.append(buffer)
        return 0

    def _leave_out_zeroes(self, piece: _Piece, runs: list[tuple[int, int]]) -> None:
        """Give back what blocks of a piece its data does not need; nothing of it is written yet."""
        edges = [0, *(edge for run in runs for edge in run), piece.length]
        gaps = [(lo, hi) for lo, hi in zip(edges[::2], edges[1::2], strict=True) if lo < hi]
        if len(gaps) > _FEW_GAPS:
            gaps = [(0, piece.length)]  # each costs as much as the blocks of many writes
        for start, end in gaps:
            self._blocks.give_back(piece.start + start, end - start)

    def _wait(self, most: int) -> None:
        """Until no more than so many pieces are under way."""
        while self._in_flight > most:
            self._ready.poll()
            with suppress(BlockingIOError):
                os.eventfd_read(self._completions.eventfd)
            for status, piece in self._completions.take():
                self._in_flight -= 1
                self.written += piece.written
                if status and self._failure is None:
                    self._failure = self._failed(piece, -status)

    def _failed(self, piece: _Piece, code: int) -> IOFailedError:
        what, image = "write failed", self._path
        if piece.reading:
            end = piece.start + piece.length
            what, image = f"read failed between {piece.start} and {end}", self._source
        return IOFailedError(f"{what}: {os.strerror(code)}", image=image, errno=code)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


def _read(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.preadv(fd, (view,), offset)
        if not count:
            if len(view) >= DEFAULT_SECTOR_SIZE:  # more than the rest of a file's last sector
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            view[:] = bytes(len(view))
            return
        offset += count
        view = view[count:]


def _write(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.pwritev(fd, (view,), offset)
        offset += count
        view = view[count:]
