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
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from tapcore.buffers import long_bytearray
from tapcore.constants import DEFAULT_SECTOR_SIZE
from tapcore.errors import IOFailedError
from tapcore.files.byname import open_host_fd
from tapcore.files.reserving import LONG_WRITE, NEW_WRITE, BlockReserver
from tapcore.process.workers import Completions, Lane
from tapcore.tools.plan import Job
from tapcore.tools.progress import Progress
from tapcore.tools.zeroes import data_runs

_FICLONERANGE: Final = 0x4020940D
_CLONE_RANGE: Final = struct.Struct("qQQQ")  # struct file_clone_range
_BLOCK: Final = 4096
_MOST_SHARED: Final = 1 << 30

_PIECE: Final = 1 << 20
_TOGETHER: Final = 64
"""Runs that one thread copies in one go, where they are short; no more than `_PIECE` in all."""

_THREADS: Final = 3
"""Two keep two processors busy, as one reads while the other writes, and one may wait for the disk.
The kernel lets only one write to a file at a time."""
_TASKS: Final = _THREADS + 1
"""Of up to `_PIECE` each: the memory for content that is under way."""

_NEAR: Final = 4 << 20
"""Bytes. What ends so close behind content that others copy is theirs too: to take turns with them
would have each wait for the other."""

_FEW_GAPS: Final = 2
_WINDOW: Final = 8 << 20
"""Bytes of blocks that are taken together, in order, so that they lie together on the disk."""


class _Piece:
    """A run of at most `_PIECE` bytes on its way.

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
        self._workers = Lane(_THREADS)
        self._writing = threading.Lock()  # who waits for the kernel's own lock burns time
        self._ready = select.poll()
        self._ready.register(self._completions.eventfd, select.POLLIN)
        self._buffers: list[bytearray] = []
        self._task: list[_Piece] = []  # to be handed to a thread
        self._room = _PIECE
        self._in_flight = 0
        self._failure: IOFailedError | None = None
        self._can_share = True
        self.written = 0

    def filter(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Do what can be done here; yield the other jobs.

        Raises:
            IOFailedError: a read or write failed; the text says which.
        """
        left = -_NEAR  # where the last one ended that is done by others
        for job in jobs:
            run = job.extent
            if run is None or run.fd is None:
                left = job.end
                yield job
                continue
            shift = run.offset - run.start
            start = self._share(job, run.fd, shift)
            if start < job.end < left + _NEAR:
                yield job._replace(start=start)
                continue
            self._copy(start, job.end, run.fd, shift)
        self._hand_over()
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
        """Copy a run by threads, in pieces; waits where enough is under way."""
        asked, held = start, False
        while start < end:
            if start == asked:
                asked = min(end, (start // _WINDOW + 1) * _WINDOW)
                held = self._take(start, asked - start)
            stop = min(end, (start // _PIECE + 1) * _PIECE)
            if stop - start > self._room or len(self._task) == _TOGETHER:
                self._hand_over()
            self._task.append(_Piece(start, stop - start, fd, start + shift, held=held))
            self._room -= stop - start
            start = stop

    def _hand_over(self) -> None:
        """Give a thread what has come together."""
        if not self._task:
            return
        self._tell(self._task[0].start)
        self._wait(_TASKS - 1)
        self._check()
        self._workers.put(self._work, (self._task,), self._completions, self._task)
        self._in_flight += 1
        self._task, self._room = [], _PIECE

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

    def _work(self, task: list[_Piece]) -> int:
        """In a thread: read the pieces of a task, and write them but for zeroes.

        Returns:
            0; what fails is raised, and the piece says whether it was read.
        """
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = long_bytearray(_PIECE)
        with memoryview(buffer) as view:
            at = 0
            for piece in task:
                _read(piece.fd, view[at : at + piece.length], piece.offset)
                piece.reading = False
                at += piece.length
            at = 0
            for piece in task:
                end = at + piece.length
                runs = [(lo - at, hi - at) for lo, hi in data_runs(buffer, end, start=at)]
                if piece.held:
                    self._leave_out_zeroes(piece, runs)
                for lo, hi in runs:
                    with self._writing:
                        _write(self._fd, view[at + lo : at + hi], piece.start + lo)
                    piece.written += hi - lo
                at = end
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
        """Until no more than so many tasks are under way."""
        while self._in_flight > most:
            self._ready.poll()
            with suppress(BlockingIOError):
                os.eventfd_read(self._completions.eventfd)
            for status, task in self._completions.take():
                self._in_flight -= 1
                self.written += sum(piece.written for piece in task)
                if status and self._failure is None:
                    self._failure = self._failed(task, -status)

    def _failed(self, task: list[_Piece], code: int) -> IOFailedError:
        what, image = "write failed", self._path
        piece = next((piece for piece in task if piece.reading), None)
        if piece is not None:
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
        count = os.pwritev(fd, (view[:NEW_WRITE],), offset)
        offset += count
        view = view[count:]
