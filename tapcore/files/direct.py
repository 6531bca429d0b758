"""An open host file past the page cache: O_DIRECT and an asynchronous engine from a plugin."""

from __future__ import annotations

import errno
import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from tapcore.buffers import POOL
from tapcore.errors import NotSupportedError, errno_of
from tapcore.files.alignment import direct_alignment
from tapcore.files.imagefile import ImageFile
from tapcore.files.lent import open_or_borrow
from tapcore.files.pooledops import PooledOp, QuickIoEngine, remember
from tapcore.interface.answer import AnswerTuple, Then, as_then
from tapcore.interface.installed import entry_points
from tapcore.process.workers import Lane

ENGINE_GROUP: Final = "tapcore.io_engines"
QUEUE_DEPTH: Final = 256
"""Operations under way for one file; more are refused with -EBUSY and come again."""

_NO_PLACE: Final = 1 << 63
"""A damaged table may name a place (bytes) that no file has, and no struct iocb can hold."""


class IoEngine(Protocol):
    """What a plugin registers in the group `tapcore.io_engines`.

    Made as `Engine(depth, eventfd)`: at most `depth` operations, completions add to `eventfd`.
    """

    free: int
    """Operations that can still be queued."""

    def address(self, buf: memoryview) -> int | None:
        """Where a buffer lies in memory; None for one that the engine cannot use (read-only)."""

    def queue_read(self, fd: int, offset: int, buf: memoryview, token: Any) -> None:
        """Queue a read of all of `buf`, which must stay alive; token comes back from `reap`."""

    def queue_write(self, fd: int, offset: int, buf: memoryview, token: Any) -> None:
        """Queue a write of all of `buf`."""

    def submit(self) -> list[tuple[int, Any]]:
        """Hand all that is queued to the kernel at once; returns those that it refused."""

    def reap(self) -> list[tuple[int, Any]]:
        """What has finished, without waiting: bytes moved or -errno, and the token.

        Also submits what the kernel had no room for, now that there is some.
        """

    def close(self) -> None:
        """Release; nothing may be under way."""


def load_engine(depth: int, eventfd: int) -> IoEngine:
    """Make the asynchronous engine that is installed.

    Raises:
        NotSupportedError: none is; the text says what to install.
    """
    engine: IoEngine = _engine_maker()(depth, eventfd)
    return engine


@functools.cache
def _engine_maker() -> Callable[[int, int], IoEngine]:
    """Looked for once, in the records of all that is installed; again, where there was none."""
    for ep in sorted(entry_points(group=ENGINE_GROUP), key=lambda ep: ep.name):
        made: Callable[[int, int], IoEngine] = ep.load()
        return made
    raise NotSupportedError("--cache none needs an asynchronous engine: pip install tap-aio")


class DirectFile(ImageFile):
    """A host file read and written with O_DIRECT.

    The kernel wants offset, length and memory aligned to `alignment`. Reads of any shape are
    served (through a bounce buffer where needed). Writes are expected in whole `sector_size`
    units, which the engine sees to; only the last one may be cut by the end of the disk, and goes
    through the page cache.
    """

    direct = True

    def __init__(self, fd: int, path: str, *, read_only: bool, workers: Lane | None = None) -> None:
        super().__init__(fd, path, read_only=read_only, workers=workers)
        self._cached_fd = -1
        self._overflow: deque[tuple[Callable[..., int], int, memoryview, Then]] = deque()
        try:
            self.alignment = direct_alignment(fd, self.sector_size)
            self.sector_size = max(self.sector_size, self.alignment)
            self._io = load_engine(QUEUE_DEPTH, self.io_fd)
            self._quick: QuickIoEngine | None = None
            if hasattr(self._io, "queue_all"):
                self._quick = cast(QuickIoEngine, self._io)
        except BaseException:
            self._completions.close()
            raise

    def read_now(self, offset: int, buf: memoryview) -> int | None:
        """Never: the disk has to be asked."""
        return None

    def write_now(self, offset: int, buf: memoryview) -> int | None:
        """Never: the disk has to be asked."""
        return None

    def queue_read(self, offset: int, buf: memoryview, then: Then | AnswerTuple) -> int:
        """Queue a read for `submit`; returns 0, or -EBUSY where the queue is full."""
        if isinstance(then, tuple):
            then = as_then(then)
        io = self._io
        if not io.free:
            return self._full(self.queue_read, offset, buf, then)
        if offset >= _NO_PLACE:
            return self._refuse(-errno.EIO, then)
        length = len(buf)
        address = io.address(buf)
        self.in_flight += 1
        if address is not None and not (offset | length | address) & (self.alignment - 1):
            io.queue_read(self.fd, offset, buf, (offset, buf, None, buf, 0, then))
            return 0
        start, end = self._around(offset, length)
        bounce = POOL.take(end - start)
        target = bounce[: end - start]
        skip = offset - start
        io.queue_read(self.fd, start, target, (start, target, bounce, buf, skip, then))
        return 0

    def queue_write(self, offset: int, buf: memoryview, then: Then | AnswerTuple) -> int:
        """Queue a write for `submit`; returns 0, or -EBUSY where the queue is full."""
        if isinstance(then, tuple):
            then = as_then(then)
        io = self._io
        if not io.free:
            return self._full(self.queue_write, offset, buf, then)
        if offset >= _NO_PLACE:
            return self._refuse(-errno.EFBIG, then)
        if self._lost_by(offset + len(buf)):
            return self._refuse(-errno.EIO, then)
        if (offset | len(buf)) & (self.alignment - 1):
            self._put(self._write_through_cache, (self._through_cache(), offset, buf), then)
            return 0
        self.in_flight += 1
        address = io.address(buf)
        if address is not None and not address & (self.alignment - 1):
            io.queue_write(self.fd, offset, buf, (offset, buf, None, None, 0, then))
            return 0
        bounce = POOL.take(len(buf))
        source = bounce[: len(buf)]
        source[:] = buf
        io.queue_write(self.fd, offset, source, (offset, source, bounce, None, 0, then))
        return 0

    # ---- past the driver --------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many operations `queue_pooled` takes now; 0 where the engine takes none so."""
        return 0 if self._quick is None else self._quick.free

    def queue_pooled(self, write: bool, ops: list[PooledOp]) -> None:
        """Queue operations, aligned and inside the file, for `submit`; not more than `room`."""
        assert self._quick is not None
        self.in_flight += len(ops)
        self._quick.queue_all(write, self.fd, ops)

    def address(self, buf: memoryview) -> int:
        """Where a buffer of the pool lies in memory."""
        address = self._io.address(buf)
        assert address is not None
        remember(buf, address)
        return address

    def under_way(self) -> list[Any]:
        """The tokens of those that are queued so, and not answered."""
        tokens = [] if self._quick is None else self._quick.under_way()
        return [token for token in tokens if type(token[0]) is not int]

    def move(self, write: bool, op: PooledOp, seconds: float) -> int | None:
        """Do an operation, as `queue_pooled` takes it, and wait for it, so long at most.

        Returns:
            What became of it; None: nothing is under way that was not, or it is from now on, and
            counts as `in_flight`.
        """
        io = self._quick
        if io is None or self.in_flight:
            return None
        offset, address, length, token = op
        moved = io.move(write, self.fd, offset, address, length, token, seconds)
        if moved is None:
            self.in_flight += 1
        else:
            self._wake_up()  # nobody else has to
        return moved

    def is_cut(self) -> bool:
        """Whether somebody else has made the file shorter: nothing may be written past its end."""
        return self._lost_by(self.size)

    def _refuse(self, res: int, then: Then) -> int:
        self.in_flight += 1
        self._completions.add(res, then)
        return 0

    def _full(self, queue: Callable[..., int], offset: int, buf: memoryview, then: Then) -> int:
        if not self.keeps_overflow:
            return -errno.EBUSY
        self._overflow.append((queue, offset, buf, then))
        return 0

    def submit(self) -> None:
        """One io_submit for the batch; what the kernel refuses is answered here.

        What found no room before comes when there is some. Afterwards, whatever is left over waits
        for operations that the kernel has: something will finish, and `reap` goes on.
        """
        io = self._io
        while True:
            self._sort(io.submit())
            if not self._overflow or not io.free:
                return
            while self._overflow and io.free:
                queue, offset, buf, then = self._overflow.popleft()
                queue(offset, buf, then)

    def reap(self) -> int:
        """Answer all that has finished."""
        self._wake_up()
        return self._answer_all()

    def _answer_all(self) -> int:
        finished = self._sort(self._io.reap())
        if self._overflow:
            self.submit()
        return finished + self._answer_completions()

    def _sort(self, found: list[tuple[int, Any]]) -> int:
        """Answer what has finished; what went past the driver by groups."""
        finished, groups = 0, []
        for moved in found:
            res, token = moved
            group = token[0]
            if type(group) is not int:
                inbox = group.inbox
                if not inbox:
                    groups.append(group)
                inbox.append(moved)
                continue
            offset, view, bounce, into, _, then = token
            if bounce is None and res == len(view):  # all of it, straight from or to its place
                self.in_flight -= 1
                if into is None:
                    self._reaches(offset + res)
                finished += then(0)
            else:
                finished += self._finish(res, token)
        for group in groups:
            self.in_flight -= len(group.inbox)
            group.answered()
        return finished

    def _finish(self, res: int, token: tuple[Any, ...]) -> int:
        offset, view, bounce, into, skip, then = token
        self.in_flight -= 1
        if res != len(view):
            res = self._finish_short(res, offset, view, reading=into is not None)
        else:
            res = 0
        if res == 0:
            if into is None:
                self._reaches(offset + len(view))
            elif bounce is not None:
                into[:] = view[skip : skip + len(into)]
        if bounce is not None:
            POOL.give(bounce)
        done: int = then(res)
        return done

    def _finish_short(self, res: int, offset: int, view: memoryview, *, reading: bool) -> int:
        """An error, the end of the file, or a short transfer to be completed."""
        if res < 0:
            return res
        if reading:
            return self.read_blocking_cached(offset + res, view[res:])
        return self.write_blocking(offset + res, view[res:])

    def read_blocking_cached(self, offset: int, buf: memoryview) -> int:
        """Read the rest of a range of any alignment through the page cache; 0 or -errno."""
        if offset >= self.size:
            buf[:] = bytes(len(buf))
            return 0
        try:
            count = os.preadv(self._through_cache(), (buf,), offset)
        except OSError as exc:
            return -errno_of(exc)
        if count == 0:
            return -errno.EIO
        return self.read_blocking_cached(offset + count, buf[count:]) if count < len(buf) else 0

    @property
    def meta_fd(self) -> int:
        """A descriptor of the file that goes through the page cache."""
        return self._through_cache()

    def _write_through_cache(self, fd: int, offset: int, buf: memoryview) -> int:
        if self._lost_by(offset + len(buf)):
            return -errno.EIO
        while len(buf):
            count = os.pwritev(fd, (buf,), offset)
            offset += count
            buf = buf[count:]
        self._reaches(offset)
        return 0

    def _through_cache(self) -> int:
        """The file without O_DIRECT; called by the loop's thread only."""
        if self._cached_fd < 0:
            access = os.O_RDONLY if self.read_only else os.O_RDWR
            self._cached_fd = open_or_borrow(f"/proc/self/fd/{self.fd}", access)
        return self._cached_fd

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        mask = self.alignment - 1
        return offset & ~mask, (offset + length + mask) & ~mask

    def resident(self, offset: int, length: int) -> bool:
        """Never: what goes to clients must not come from the page cache either."""
        return False

    def drain(self) -> None:
        """Wait until nothing is under way; every callback has been called."""
        self.submit()
        super().drain()

    def _under_way(self) -> bool:
        return bool(self.in_flight or self._overflow)

    def let_go(self) -> None:
        """As its base does it, the descriptor through the page cache too."""
        if not self._closed and self._cached_fd >= 0:
            os.close(self._cached_fd)
        super().let_go()

    def _release(self) -> None:
        try:
            self._io.close()
            if self._cached_fd >= 0:
                os.close(self._cached_fd)
        finally:
            super()._release()
