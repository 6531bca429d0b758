"""An open host file through the page cache: answered at once where possible, else by threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, overload

from tapcore.errors import IOFailedError, describe, errno_of
from tapcore.files.blockingfile import BlockingFile
from tapcore.files.linux import lies_in_memory, times_waited
from tapcore.files.reserving import LONG_WRITE
from tapcore.interface.answer import AnswerTuple, Then, as_then
from tapcore.process.workers import PACKING_THREADS, Completions, Lane

if TYPE_CHECKING:
    from tapcore.files.windows import Windows

_NOWAIT: Final = os.RWF_NOWAIT

SLOW_WRITE_SECONDS: Final = 0.005
"""A write into the page cache that takes longer was throttled by the kernel, or somebody else had
the processor meanwhile."""

_WATCHED: Final = 100
"""So many writes after a slow one it is looked at whether they wait."""


class ImageFile(BlockingFile):
    """A host file that a driver reads and writes without blocking the loop.

    Args:
        fd: open, for reading and writing unless `read_only`.
        path: of the file.
        read_only: whether it was opened so.
        workers: the disk's share of the threads; None for one of the file's own.

    Attributes:
        io_fd: to be polled; when it is readable, call `reap`.
        in_flight: operations queued and not answered.
    """

    direct = False

    keeps_overflow = False
    """Set by a driver that splits requests: `queue_read` and `queue_write` then keep what finds no
    room, and never answer -EBUSY."""

    def __init__(self, fd: int, path: str, *, read_only: bool, workers: Lane | None = None) -> None:
        super().__init__(fd, path, read_only=read_only)
        self.in_flight = 0
        self._completions = Completions()
        self._workers = workers or Lane()
        self._writes = Lane(1, self._workers)
        self._packing = Lane(PACKING_THREADS, self._workers)
        self.io_fd = self._completions.eventfd
        self._read_flags = _NOWAIT
        self._nowait = True
        self._throttled = False
        self._watched = 0
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
        except OverflowError:  # a damaged table names a place that no file has
            return -errno.EIO
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
        waits = times_waited() if self._watched else -1
        started = monotonic()
        if self._lost_by(offset + len(buf)):
            return -errno.EIO
        if offset >= self.size:
            self._blocks.take(offset, len(buf))
        try:
            count = os.pwritev(self.fd, (buf,), offset)
        except OSError as exc:
            return -errno_of(exc)
        except OverflowError:
            return -errno.EFBIG
        if monotonic() - started > SLOW_WRITE_SECONDS:
            self._was_slow(waits)
        elif waits >= 0:
            self._watched -= 1
        if count != len(buf):
            return None
        if offset + count > self.size:
            self._reaches(offset + count)
        return 0

    def write_mapped(self, offset: int, content: memoryview, now: float) -> bool:
        """Overwrite a range inside the file, where that is cheaper than `write_now`.

        Args:
            offset: bytes.
            content: at most `tapcore.files.windows.MOST_WRITTEN` bytes.
            now: `time.monotonic()`, or a little before.

        Returns:
            Whether all of it is in the page cache. If not, a part may be, and `write_now` says
            what is wrong.
        """
        windows = self.windows
        place = None if windows is None else windows.to_write(offset, len(content), now)
        if place is None or windows is None:
            return False
        try:
            os.pwrite(windows.carrier, content, 0)
        except OSError:  # there is no memory for it
            return False
        return self.fill(windows.carrier, [place], 0, len(content), end=offset + len(content))

    def fill(
        self, carrier: int, places: list[memoryview], start: int, length: int, *, end: int
    ) -> bool:
        """Overwrite parts of the file, in order, by one call of the kernel.

        Args:
            carrier: descriptor of a file in memory, which holds the content.
            places: what `Windows.to_write` gave, and perhaps other memory between.
            start: where in the carrier it begins, bytes.
            length: of all places, bytes.
            end: of the last of them in this file, bytes.

        Returns:
            As `write_mapped`.
        """
        if self._throttled:
            return False
        waits = times_waited() if self._watched else -1
        started = monotonic()
        if self._lost_by(end):
            return False
        try:
            done = os.preadv(carrier, places, start) == length
        except OSError:  # EFAULT: a page is not there any more, or has no room
            done = False
        if not done and self.windows is not None:
            self.windows.distrust()
        if monotonic() - started > SLOW_WRITE_SECONDS:
            self._was_slow(waits)
        elif waits >= 0:
            self._watched -= 1
        return done

    def _was_slow(self, waits: int) -> None:
        """The kernel made a write wait, or nobody did and it only had no processor.

        To tell them apart costs as much as a tenth of a small write. So it is asked from the first
        slow write on: who is made to wait once is so again.

        Args:
            waits: what `times_waited` said before the write; -1: it was not asked.
        """
        if 0 <= waits < times_waited():
            self._throttled = True
        self._watched = _WATCHED

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
        except OverflowError:  # `read_metadata` says so
            return None
        if count < length and offset + count < self.size:
            return None
        return bytes(buf)

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

    def queue_packing(self, work: Callable[[], int], then: Then) -> None:
        """As `queue_work`, for what keeps a processor busy; as many at a time as there are."""
        self._put(work, (), then, self._packing)

    def submit(self) -> None:
        """Hand what is queued to the kernel (threads have it already)."""

    def reap(self) -> int:
        """Answer all that has finished.

        Returns:
            The sum of what the callbacks returned.
        """
        self._wake_up()
        return self._answer_completions()

    def _wake_up(self) -> None:
        try:  # suppress() would take as long as the call itself
            os.eventfd_read(self.io_fd)
        except BlockingIOError:
            return

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
        except BaseException:
            self._workers.abandoned = True
            raise

    # ---- its end ---------------------------------------------------------------------------

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
            if self._workers.abandoned:
                self.abandon()
            else:
                self._release()

    def drain(self) -> None:
        """Wait until nothing is under way; every callback has been called."""
        try:
            while self._under_way() and not self._workers.abandoned:
                os.set_blocking(self.io_fd, True)
                os.eventfd_read(self.io_fd)
                self._answer_all()
        except BaseException:  # a result may be lost, which nobody may wait for
            self._workers.abandoned = True
            raise

    def _under_way(self) -> bool:
        return bool(self.in_flight)

    def _answer_all(self) -> int:
        return self._answer_completions()

    def let_go(self) -> None:
        """Close the descriptor in a forked child; the parent has the file, and its locks."""
        self._give_up_windows()
        if not self._closed:
            self._closed = True
            os.close(self.fd)

    def resize(self, size: int) -> None:
        """Change the file's length (bytes)."""
        self._give_up_windows()
        super().resize(size)

    @cached_property
    def windows(self) -> Windows | None:
        """Parts of it in memory, for system calls; None where it is not read so."""
        if self.direct:
            return None
        from tapcore.files.windows import Windows

        return Windows(self)

    def _windows_made(self) -> Windows | None:
        made: Windows | None = vars(self).get("windows")
        return made

    def _punched(self) -> None:
        super()._punched()
        if (windows := self._windows_made()) is not None:
            windows.forget_blocks()

    def _flushing(self) -> None:
        if (windows := self._windows_made()) is not None:
            windows.flushing()

    def _give_up_windows(self) -> None:
        if (windows := self._windows_made()) is not None:
            windows.give_up()

    def abandon(self) -> None:
        """Close it when what was queued cannot be answered any more: what has not begun never does.

        What threads, or the kernel, have in hand is waited for: the descriptor is theirs so long.
        """
        if not self._closed:
            for lane in (self._writes, self._packing, self._workers):
                lane.abandon()
            self._release()

    def _release(self) -> None:
        self._closed = True
        try:
            self._give_up_windows()
            self._completions.close()
        finally:
            os.close(self.fd)
