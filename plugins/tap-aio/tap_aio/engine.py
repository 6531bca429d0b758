"""Linux AIO through python-libaio: iocbs in one block of memory, reused; io_submit by batches.

The package's own AIOBlock objects cost more than the I/O; its structures and its binding of the
three system calls are used directly. Layouts: linux/aio_abi.h, struct iocb and struct io_event.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any, Final

from tapcore import NotSupportedError, describe_error

_IOCB = struct.Struct("=QIIHhIQQqQII")
"""data, key, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, reserved, flags, resfd."""
_ASKED = struct.Struct("=HhIQQq")
"""What changes of one from request to request, from `_ASKED_AT` on: opcode to offset."""
_ASKED_AT: Final = 16
_SIZE: Final = _IOCB.size
_EVENT = struct.Struct("=QQqq")  # data, obj, res, res2

_PREAD: Final = 0
_PWRITE: Final = 1
_FLAG_RESFD: Final = 1

_FULL_BATCH: Final = 32 << 10
"""Bytes queued that are worth a call of their own: the disk should not wait until the last request
of a large batch is parsed. Measured: reads at depth 32 are a third faster than in one call."""


def _load() -> Any:
    """python-libaio's binding; what to install where it, or the C library, is missing."""
    try:
        from libaio import libaio
    except ModuleNotFoundError:
        raise NotSupportedError("Linux AIO needs the package libaio: pip install libaio") from None
    except OSError:
        raise NotSupportedError(
            "Linux AIO needs libaio.so.1: apt-get install libaio1 (Debian, Ubuntu: libaio1t64; "
            "Fedora: libaio)"
        ) from None
    return libaio


class LibaioEngine:
    """The core's `IoEngine` over one AIO context.

    Args:
        depth: operations under way at most.
        eventfd: is added to for each completion.

    Attributes:
        free: operations that can still be queued.
    """

    def __init__(self, depth: int, eventfd: int) -> None:
        self._lib = lib = _load()
        self._context = lib.io_context_t()
        try:
            lib.io_queue_init(depth, ctypes.byref(self._context))
        except OSError as exc:
            raise _setup_error(exc) from None
        self.free = depth
        self._slots = list(range(depth))
        self._tokens: list[Any] = [None] * depth
        self._pinned: list[Any] = [None] * depth
        self._iocbs = ctypes.create_string_buffer(_SIZE * depth)
        for slot in range(depth):
            fixed = slot, 0, 0, _PREAD, 0, 0, 0, 0, 0, 0, _FLAG_RESFD, eventfd
            _IOCB.pack_into(self._iocbs, slot * _SIZE, *fixed)
        base = ctypes.addressof(self._iocbs)
        self._address_of = [base + _SIZE * slot for slot in range(depth)]
        self._pending = (ctypes.c_void_p * depth)()
        self._pending_p = ctypes.cast(self._pending, lib.io_submit.argtypes[2])
        self._queued: list[int] = []
        self._queued_bytes = 0
        self._refused: list[tuple[int, Any]] = []
        self._left_over = False
        self._events = (lib.io_event * depth)()
        self._events_view = memoryview(self._events).cast("B")
        self._depth = depth
        self._wait_time = lib.timespec()
        self._wait_seconds = 0.0
        self._asked: tuple[memoryview | None, Any, int] = None, None, 0

    def address(self, buf: memoryview) -> int | None:
        """Where a buffer lies in memory; None for one that is read-only."""
        if buf.readonly:
            return None
        pin = ctypes.c_char.from_buffer(buf)
        address = ctypes.addressof(pin)
        self._asked = buf, pin, address  # mostly it is queued next
        return address

    def queue_read(self, fd: int, offset: int, buf: memoryview, token: Any) -> None:
        """Queue a read of all of `buf` for the next submit."""
        self._queue(_PREAD, fd, offset, buf, token)

    def queue_write(self, fd: int, offset: int, buf: memoryview, token: Any) -> None:
        """Queue a write of all of `buf` for the next submit."""
        self._queue(_PWRITE, fd, offset, buf, token)

    def queue_all(
        self, write: bool, fd: int, ops: list[tuple[int, int, int, tuple[Any, ...]]]
    ) -> None:
        """Queue operations, for which there is room, for the next submit.

        Args:
            write: what they are.
            fd: their file.
            ops: of each its place in the file, where its memory lies, both in bytes, as its length
                is, and a token, which keeps that memory.
        """
        slots, tokens, iocbs, queued = self._slots, self._tokens, self._iocbs, self._queued
        pack, size = _ASKED.pack_into, self._queued_bytes
        self.free -= len(ops)
        for offset, address, length, token in ops:
            slot = slots.pop()
            tokens[slot] = token
            pack(iocbs, slot * _SIZE + _ASKED_AT, write, 0, fd, address, length, offset)
            queued.append(slot)
            size += length
        self._queued_bytes = size
        if size >= _FULL_BATCH and not self._left_over:
            self._refused = self.submit()

    def move(
        self,
        write: bool,
        fd: int,
        offset: int,
        address: int,
        length: int,
        token: Any,
        seconds: float,
    ) -> int | None:
        """Do an operation, while there is no other, and wait for it: arguments as for `queue_all`.

        Args:
            seconds: how long it is waited for at most.

        Returns:
            As `reap` has it; None: it goes on, and `reap` will have it.
        """
        slot = self._slots[-1]
        place = slot * _SIZE
        _ASKED.pack_into(self._iocbs, place + _ASKED_AT, write, 0, fd, address, length, offset)
        self._pending[0] = self._address_of[slot]
        try:
            self._lib.io_submit(self._context, 1, self._pending_p)
        except OSError as exc:
            return -(exc.errno or errno.EIO)
        if seconds != self._wait_seconds:
            self._wait_seconds, whole = seconds, int(seconds)
            self._wait_time.tv_sec, self._wait_time.tv_nsec = whole, int((seconds - whole) * 1e9)
        try:
            if self._lib.io_getevents(self._context, 1, 1, self._events, self._wait_time):
                res: int = _EVENT.unpack_from(self._events_view)[2]
                return res
        except InterruptedError:  # a signal
            pass
        self._slots.pop()
        self._tokens[slot] = token
        self.free -= 1
        return None

    def under_way(self) -> list[Any]:
        """The tokens of all that has not finished."""
        return [token for token in self._tokens if token is not None]

    def _queue(self, opcode: int, fd: int, offset: int, buf: memoryview, token: Any) -> None:
        slot, length = self._slots.pop(), len(buf)
        self.free -= 1
        known, pin, address = self._asked
        if known is not buf:
            pin = ctypes.c_char.from_buffer(buf)
            address = ctypes.addressof(pin)
        self._asked = None, None, 0
        self._pinned[slot] = pin  # the memory must not go away while the kernel uses it
        self._tokens[slot] = token
        place = slot * _SIZE + _ASKED_AT
        _ASKED.pack_into(self._iocbs, place, opcode, 0, fd, address, length, offset)
        self._queued.append(slot)
        self._queued_bytes += length
        if self._queued_bytes >= _FULL_BATCH and not self._left_over:
            self._refused = self.submit()

    def submit(self) -> list[tuple[int, Any]]:
        """One io_submit for all that is queued; what the kernel has refused so far is returned.

        What does not fit into the device's queue now is submitted again when something finishes.
        """
        refused, self._refused = self._refused, []
        self._queued_bytes = 0
        self._left_over = False
        while self._queued:
            count, address_of = len(self._queued), self._address_of
            self._pending[:count] = [address_of[slot] for slot in self._queued]
            try:
                done = self._lib.io_submit(self._context, count, self._pending_p)
            except OSError as exc:
                if exc.errno in (errno.EAGAIN, errno.EINTR) and self._under_way():
                    self._left_over = True
                    break
                refused.append(self._take(self._queued.pop(0), -(exc.errno or errno.EIO)))
                continue
            del self._queued[:done]
        return refused

    def _under_way(self) -> bool:
        return self._depth - self.free > len(self._queued)

    def reap(self) -> list[tuple[int, Any]]:
        """What has finished: bytes moved or -errno, and the token."""
        try:
            count = self._lib.io_getevents(self._context, 0, self._depth, self._events, None)
        except InterruptedError:  # a signal, and nothing was there
            return []
        finished, tokens, pinned = [], self._tokens, self._pinned
        for slot, _, res, _ in _EVENT.iter_unpack(self._events_view[: count * _EVENT.size]):
            finished.append((res, tokens[slot]))  # as `_take`, without a call for each
            tokens[slot] = pinned[slot] = None
            self._slots.append(slot)
        self.free += count
        if self._left_over:
            finished += self.submit()
        return finished

    def _take(self, slot: int, res: int) -> tuple[int, Any]:
        token = self._tokens[slot]
        self._tokens[slot] = self._pinned[slot] = None
        self._slots.append(slot)
        self.free += 1
        return res, token

    def close(self) -> None:
        """Destroy the context; waits for what the kernel still does."""
        self._lib.io_queue_release(self._context)


def _setup_error(exc: OSError) -> NotSupportedError:
    if exc.errno == errno.EAGAIN:
        text = "no Linux AIO contexts are left: raise the sysctl fs.aio-max-nr"
    elif exc.errno == errno.ENOSYS:
        text = "this kernel has no Linux AIO"
    else:
        text = f"Linux AIO cannot be set up: {describe_error(exc)}"
    return NotSupportedError(text, errno=exc.errno or os.EX_OSERR)
