"""An open host file through the page cache: answered at once where possible, else by threads."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any, Final, overload

from tapcore.constants import DEFAULT_SECTOR_SIZE, SECTOR_SHIFT
from tapcore.errors import IOFailedError, UsageError, describe, errno_of
from tapcore.files.holes import HoleMap
from tapcore.files.hostfile import (
    host_file_size,
    logical_block_size,
    occupied_bytes,
    punch_hole,
    resize_host_file,
    zero_range,
)
from tapcore.files.linux import all_in_page_cache, lies_in_memory
from tapcore.files.reserving import LONG_WRITE, BlockReserver
from tapcore.interface.answer import AnswerTuple, Then, as_then
from tapcore.interface.results import Extent
from tapcore.process.workers import Completions, Lane

log = logging.getLogger(__name__)

_NOWAIT: Final = os.RWF_NOWAIT
_SHRUNK: Final = "has become shorter while it was open"

_SLOW_WRITE_SECONDS: Final = 0.005
"""A write into the page cache that takes longer was throttled by the kernel."""


class ImageFile:
    """A host file that a driver reads and writes without blocking the loop.

    Offsets and lengths are bytes. A range may reach past the end of the file only within the last
    sector: what lies there reads as zeroes, and writing it makes the file whole sectors long.

    Attributes:
        fd: the open descriptor.
        path: of the file.
        size: bytes, as opened or grown since.
        read_only: whether it was opened so.
        sector_size: bytes; smallest unit in which the file should be read and written.
        io_fd: to be polled; when it is readable, call `reap`.
        in_flight: operations queued and not answered.
    """

    direct = False
    durable = True
    """False: flushes do not wait for the disk (a new image that nobody relies on yet)."""

    keeps_overflow = False
    """Set by a driver that splits requests: `queue_read` and `queue_write` then keep what finds no
    room, and never answer -EBUSY."""

    def __init__(self, fd: int, path: str, *, read_only: bool, workers: Lane | None = None) -> None:
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self.size = host_file_size(fd)
        self.sector_size = logical_block_size(fd)
        self.in_flight = 0
        self.holes = HoleMap(fd)
        self._completions = Completions()
        self._workers = workers or Lane()
        self._writes = Lane(1, self._workers)
        self._blocks = BlockReserver(fd)
        self._growing = threading.Lock()
        self.io_fd = self._completions.eventfd
        self._read_flags = _NOWAIT
        self._nowait = True
        self._throttled = False
        self._said_shrunk = False
        self._closed = False

    # ---- at once, where the page cache allows ----------------------------------------------

    def read_now(self, offset: int, buf: memoryview) -> int | None:
        """Read what the page cache holds.

        Returns:
            0 when `buf` is full, -errno, or None: it would block (or is short), queue it.
        """
        if not self._nowait:
            return None
        try:
            count = os.preadv(self.fd, (buf,), offset, self._read_flags)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                self._learn_nowait()
                return self.read_now(offset, buf)
            return -errno_of(exc)
        return 0 if count == len(buf) else None

    def _learn_nowait(self) -> None:
        """The file system does not know RWF_NOWAIT: fine in memory, else threads must read."""
        self._read_flags = 0
        self._nowait = lies_in_memory(self.fd)

    def write_now(self, offset: int, buf: memoryview) -> int | None:
        """Write into the page cache, unless the kernel has begun to make writers wait.

        Returns:
            0, -errno, or None: queue it.
        """
        if self._throttled:
            return None
        if not self.durable and len(buf) >= LONG_WRITE:
            return None  # a new image: whoever fills it has the next reads to do meanwhile
        started = monotonic()
        if self._lost_by(offset + len(buf)):
            return -errno.EIO
        if offset >= self.size:
            self._blocks.take(offset, len(buf))
        try:
            count = os.pwritev(self.fd, (buf,), offset)
        except OSError as exc:
            return -errno_of(exc)
        if monotonic() - started > _SLOW_WRITE_SECONDS:
            self._throttled = True
        if count != len(buf):
            return None
        if offset + count > self.size:
            self._reaches(offset + count)
        return 0

    # ---- queued: `reap` calls `then(0 or -errno)` --------------------------------------------

    def queue_read(self, offset: int, buf: memoryview, then: Then | AnswerTuple) -> int:
        """Read later. Returns 0, or -EBUSY: nothing was taken, ask again later."""
        self._put(self.read_blocking, (offset, buf), then)
        return 0

    def queue_write(self, offset: int, buf: memoryview, then: Then | AnswerTuple) -> int:
        """Write later. Returns 0, or -EBUSY: nothing was taken, ask again later."""
        self._put(self.write_blocking, (offset, buf), then, self._writes)
        return 0

    def queue_flush(self, then: Then | AnswerTuple) -> None:
        """fdatasync later."""
        self._put(self.flush_blocking, (), then)

    def queue_discard(self, offset: int, length: int, then: Then | AnswerTuple) -> None:
        """Punch a hole later; a file system without holes ignores it."""
        self._put(self.discard_blocking, (offset, length), then)

    def queue_zero(
        self, offset: int, length: int, may_unmap: bool, then: Then | AnswerTuple
    ) -> None:
        """Zero a range later without writing; -EOPNOTSUPP where the file system cannot."""
        self._put(self.zero_blocking, (offset, length, may_unmap), then)

    @overload
    def queue_work(self, work: Callable[[], int], then: Then | AnswerTuple, /) -> None: ...

    @overload
    def queue_work(
        self, work: Callable[..., int], args: tuple[Any, ...], answer: Then | AnswerTuple, /
    ) -> None: ...

    def queue_work(self, work: Callable[..., int], *rest: Any) -> None:
        """Run `work()`, which returns 0 or -errno or raises, in a thread.

        Older drivers give arguments for `work`, a tuple, before the answer.
        """
        *args, then = rest
        self._put(work, args[0] if args else (), then)

    def submit(self) -> None:
        """Hand what is queued to the kernel (threads have it already)."""

    def reap(self) -> int:
        """Answer all that has finished.

        Returns:
            The sum of what the callbacks returned.
        """
        with suppress(BlockingIOError):
            os.eventfd_read(self.io_fd)
        return self._answer_completions()

    def _answer_completions(self) -> int:
        finished = 0
        for res, then in self._completions.take():
            self.in_flight -= 1
            finished += then(res)
        if self._throttled and not self.in_flight:
            self._throttled = False
        return finished

    def _put(
        self,
        work: Callable[..., int],
        args: tuple[Any, ...],
        then: Then | AnswerTuple,
        lane: Lane | None = None,
    ) -> None:
        then = as_then(then)
        self.in_flight += 1
        try:
            (lane or self._workers).put(work, args, self._completions, then)
        except OSError as exc:  # no thread: an answer like any other failure's
            self._completions.add(-errno_of(exc), then)

    def _reaches(self, end: int) -> None:
        """The file is at least so long (bytes): the loop and threads may find that side by side."""
        with self._growing:
            if end > self.size:
                self.size = end

    def _lost_by(self, end: int) -> bool:
        """Whether somebody else has cut off what lies before a write's end (bytes).

        The write would make the file longer again, and what was lost would read as zeroes.
        """
        size = self.size  # before the look: a write beside this one may make the file longer
        real = os.lseek(self.fd, 0, os.SEEK_END)  # a third of what fstat costs
        if real >= size or real >= end:
            return False
        if not self._said_shrunk:
            self._said_shrunk = True
            log.error("%s: %s; nothing is written past its new end", self.path, _SHRUNK)
        return True

    # ---- blocking --------------------------------------------------------------------------

    def read_blocking(self, offset: int, buf: memoryview) -> int:
        """Read all of `buf`, zeroes past the end of the file; returns 0 or -errno."""
        while len(buf):
            size = self.size  # before the read: a write beside it may make the file longer
            try:
                count = os.preadv(self.fd, (buf,), offset)
            except OSError as exc:
                return -errno_of(exc)
            if count == 0:
                return self._read_past_end(offset, buf, size)
            offset += count
            buf = buf[count:]
        return 0

    @staticmethod
    def _read_past_end(offset: int, buf: memoryview, size: int) -> int:
        if offset < size:  # the file has shrunk under us: that is no content to invent
            return -errno.EIO
        buf[:] = bytes(len(buf))
        return 0

    def write_blocking(self, offset: int, buf: memoryview) -> int:
        """Write all of `buf`; returns 0 or -errno."""
        end = offset + len(buf)
        if self._lost_by(end):
            return -errno.EIO
        if offset >= self.size:
            self._blocks.take(offset, len(buf))
        while len(buf):
            try:
                count = os.pwritev(self.fd, (buf,), offset)
            except OSError as exc:
                return -errno_of(exc)
            offset += count
            buf = buf[count:]
        if end > self.size:
            self._reaches(end)
        return 0

    def flush_blocking(self) -> int:
        """fdatasync; returns 0 or -errno."""
        try:
            if self.durable:
                os.fdatasync(self.fd)
        except OSError as exc:
            return -errno_of(exc)
        return 0

    def discard_blocking(self, offset: int, length: int) -> int:
        """Punch a hole; a file system without holes ignores it. Returns 0 or -errno."""
        try:
            self._punch(offset, length)
        except OSError as exc:
            return 0 if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL) else -errno_of(exc)
        return 0

    def zero_blocking(self, offset: int, length: int, may_unmap: bool) -> int:
        """Zero a range without writing; returns 0, or -EOPNOTSUPP where that is not possible."""
        try:
            if may_unmap:
                self._punch(offset, length)
            elif self._lost_by(offset + length):
                return -errno.EIO
            else:
                zero_range(self.fd, offset, length)
        except OSError as exc:
            return -errno_of(exc)
        return 0

    def _punch(self, offset: int, length: int) -> None:
        if self._lost_by(offset + length):
            raise OSError(errno.EIO, _SHRUNK)
        # nothing lies past the end; `size` is not asked, as threads that make the file longer side
        # by side may leave it too small, and content would stay
        length = min(length, max(host_file_size(self.fd) - offset, 0))
        if length:
            punch_hole(self.fd, offset, length)
            self.holes.forget()

    # ---- metadata: any alignment, through the page cache in either cache mode ----------------

    @property
    def meta_fd(self) -> int:
        """A descriptor of the file that goes through the page cache."""
        return self.fd

    def metadata_now(self, offset: int, length: int) -> bytes | None:
        """A range (bytes), zero padded past the end of the file, if the page cache holds it.

        Returns:
            The content, or None: reading it would block; let `queue_work` call `read_metadata`.
        """
        buf = bytearray(length)
        try:
            count = os.preadv(self.meta_fd, (buf,), offset, self._read_flags)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP or not self._read_flags:
                return None
            self._learn_nowait()
            return self.metadata_now(offset, length) if self._nowait else None
        if count < length and offset + count < self.size:
            return None
        return bytes(buf)

    def read_metadata(self, offset: int, length: int) -> bytes:
        """A range (bytes), zero padded past the end of the file; waits for the disk.

        Raises:
            OSError: as the system says.
        """
        parts = []
        left = length
        while left:
            size = self.size  # before the read: a write beside it may make the file longer
            part = os.pread(self.meta_fd, left, offset)
            if not part and offset < size:
                raise OSError(errno.EIO, _SHRUNK)
            if not part:
                parts.append(bytes(left))
                break
            parts.append(part)
            offset += len(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_metadata(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write a range (bytes) into the page cache, whatever its alignment.

        Raises:
            OSError: as the system says.
        """
        view = memoryview(data).cast("B")
        end = offset + len(view)
        if self._lost_by(end):
            raise OSError(errno.EIO, _SHRUNK)
        while len(view):
            count = os.pwritev(self.meta_fd, (view,), offset)
            offset += count
            view = view[count:]
        self._reaches(end)

    def look_again(self) -> int:
        """The file's size (bytes), which somebody else may have made larger since."""
        self._reaches(host_file_size(self.fd))
        return self.size

    def truncate_up(self, size: int) -> None:
        """Make the file at least `size` bytes long; what is new is a hole.

        Nobody may be writing past `size` meanwhile: that would be cut off.

        Raises:
            OSError: as the system says; ENOSPC for a block device that is shorter.
        """
        if size <= host_file_size(self.fd):
            return
        if self._lost_by(size):
            raise OSError(errno.EIO, _SHRUNK)
        try:
            resize_host_file(self.fd, size)
        except UsageError:
            raise OSError(errno.ENOSPC, "the block device is full") from None
        self._reaches(size)

    # ---- what lies where -------------------------------------------------------------------

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """The same for a driver whose disk is the file, as `td_extents` yields it."""
        start, stop = sector << SECTOR_SHIFT, (sector + nb_sectors) << SECTOR_SHIFT
        done = sector
        for _, end, data in self.runs(start, stop - start):
            until = -(-end >> SECTOR_SHIFT) if data else end >> SECTOR_SHIFT
            until = min(until, sector + nb_sectors)
            if end >= stop:
                until = sector + nb_sectors
            if until <= done:  # a run that ends inside a sector that is data already
                continue
            where = done << SECTOR_SHIFT
            if data:
                yield Extent(done, until - done, "data", self.fd, self.path, where)
            else:  # a hole has its place in the file too, and qemu-img map shows it
                yield Extent(done, until - done, "zero", None, self.path, where)
            done = until

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Data and holes of a range, as (start, end, is data) in bytes.

        Raises:
            IOFailedError: the file has become shorter, and what is missing is no hole.
        """
        for start, end, data in self.holes.runs(offset, offset + length):
            needed = min(end, self.size)  # asked for before the file's length
            if needed > host_file_size(self.fd):
                raise IOFailedError(_SHRUNK, image=self.path, errno=errno.EIO)
            yield start, end, data

    @property
    def sectors(self) -> int:
        """The file's size in sectors, a part of one counting as one."""
        return (self.size + DEFAULT_SECTOR_SIZE - 1) >> SECTOR_SHIFT

    def resident(self, offset: int, length: int) -> bool:
        """Whether the page cache holds the whole range, so that sendfile would not block."""
        return all_in_page_cache(self.fd, offset, length)

    def occupied(self) -> int:
        """Bytes that the file really takes on its file system."""
        return occupied_bytes(self.fd)

    def resize(self, size: int) -> None:
        """Change the file's length (bytes)."""
        before = self.size
        self.size = min(before, size)  # what another thread misses now was cut off on purpose
        try:
            resize_host_file(self.fd, size)
        except BaseException:
            self.size = before
            raise
        self.size = size
        self.holes.forget()

    def close(self) -> None:
        """Wait for what is in flight, flush, and close.

        Raises:
            IOFailedError: the flush failed; the file is closed all the same.
        """
        try:
            self.drain()
            if not self.read_only and self.durable:
                os.fdatasync(self.fd)
        except OSError as exc:
            message = f"the last flush failed: {describe(exc)}"
            raise IOFailedError(message, image=self.path, errno=exc.errno) from None
        finally:
            self._release()

    def drain(self) -> None:
        """Wait until nothing is under way; every callback has been called."""
        while self.in_flight:
            os.set_blocking(self.io_fd, True)
            os.eventfd_read(self.io_fd)
            self._answer_completions()

    def let_go(self) -> None:
        """Close the descriptor in a forked child; the parent has the file, and its locks."""
        if not self._closed:
            self._closed = True
            os.close(self.fd)

    def _release(self) -> None:
        self._completions.close()
        self._closed = True
        os.close(self.fd)
