"""Telling a front end through its eventfd, without ever waiting for it.

Whoever shares a descriptor can make it blocking again, and can fill the counter of an eventfd: a
`write` to one that a stranger has sent may wait for him for ever, and all disks of this process
with it. What the kernel does itself to tell of a finished operation (io_submit(2), `aio_resfd`)
never waits, and also refuses what is no eventfd. So a read of one byte of memory is submitted,
which is finished at once.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import struct
from collections.abc import Callable
from typing import Any, Final

_IOCB: Final = struct.Struct("<QIIHhIQQqQII")  # struct iocb of linux/aio_abi.h
_EVENT_SIZE: Final = 32  # struct io_event
_RESFD: Final = 1
_PREAD: Final = 0

_DEPTH: Final = 64
"""Operations whose end nobody has looked at."""


class Notifier:
    """Tells of something through eventfds of others.

    Attributes:
        unseen: operations since `forget`, of which there is room for so many.

    Raises:
        OSError: the kernel has no asynchronous I/O, or none left (fs.aio-max-nr).
    """

    def __init__(self) -> None:
        self._calls = calls = _calls()
        self._memory = os.memfd_create("tapcore", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._memory, 1)
            self._context = calls.setup(_DEPTH)
        except BaseException:
            os.close(self._memory)
            raise
        self.unseen = 0

    def bell(self, eventfd: int) -> Bell:
        """A way to tell through one eventfd, which stays the caller's."""
        operation = self._calls.operation(self._memory, eventfd)
        return Bell(self, self._calls.submitting(self._context, operation))

    def forget(self) -> None:
        """What is finished."""
        self._calls.reap(self._context)
        self.unseen = 0

    def close(self) -> None:
        """Release it; its bells do not ring any more."""
        self._calls.destroy(self._context)
        os.close(self._memory)


class Bell:
    """One eventfd. Call it to tell."""

    __slots__ = ("_notifier", "_submit")

    def __init__(self, notifier: Notifier, submit: Callable[[], int]) -> None:
        self._notifier = notifier
        self._submit = submit

    def __call__(self) -> None:
        """Add 1, or nothing where the counter is full.

        Raises:
            OSError: EINVAL where it is not an eventfd.
        """
        notifier = self._notifier
        if notifier.unseen == _DEPTH:
            notifier.forget()
        notifier.unseen += 1
        if self._submit() < 0:
            raise _calls().failure()


class _Calls:
    """The system calls, which no library has to be installed for."""

    def __init__(self) -> None:
        import ctypes

        from tapcore.process.libc import typed_function

        self._ctypes = ctypes
        self._syscall = syscall = typed_function("syscall")
        syscall.restype = ctypes.c_long
        # of x86_64; all newer architectures have the generic table
        numbers = (206, 207, 208, 209) if platform.machine() == "x86_64" else (0, 1, 4, 2)
        self._setup, self._destroy, self._reap, self._submit = map(ctypes.c_long, numbers)
        self._one, self._none = ctypes.c_long(1), ctypes.c_long(0)
        self._all = ctypes.c_long(_DEPTH)
        self._events = ctypes.create_string_buffer(_EVENT_SIZE * _DEPTH)
        self._byte = ctypes.create_string_buffer(1)

    def setup(self, depth: int) -> Any:
        """io_setup(2); returns the context."""
        ctypes = self._ctypes
        context = ctypes.c_ulong(0)
        if self._syscall(self._setup, ctypes.c_long(depth), ctypes.byref(context)) < 0:
            raise self.failure()
        return context

    def destroy(self, context: Any) -> None:
        """io_destroy(2)."""
        self._syscall(self._destroy, context)

    def operation(self, memory: int, eventfd: int) -> Any:
        """A list of one: read a byte, and add 1 to an eventfd."""
        ctypes = self._ctypes
        place = ctypes.addressof(self._byte)
        packed = _IOCB.pack(0, 0, 0, _PREAD, 0, memory, place, 1, 0, 0, _RESFD, eventfd)
        block = ctypes.create_string_buffer(packed, _IOCB.size)
        listed = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        listed.block = block  # lives as long
        return listed

    def submitting(self, context: Any, operation: Any) -> Callable[[], int]:
        """io_submit(2) of one, to be called; it gives a negative number where it fails."""
        return functools.partial(self._syscall, self._submit, context, self._one, operation)

    def reap(self, context: Any) -> None:
        """io_getevents(2): forget all that is finished."""
        self._syscall(self._reap, context, self._none, self._all, self._events, None)

    def failure(self) -> OSError:
        """Of the last call."""
        code = self._ctypes.get_errno() or errno.EIO
        return OSError(code, os.strerror(code))


@functools.cache
def _calls() -> _Calls:
    return _Calls()
