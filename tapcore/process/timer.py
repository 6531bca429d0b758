"""Things to be done later, and a descriptor that is readable when one of them is due."""

from __future__ import annotations

import ctypes
import heapq
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import CLOCK_MONOTONIC, monotonic
from typing import Final, TypeAlias

from tapcore.process.libc import libc

Put: TypeAlias = Callable[[float, Callable[[], object]], object]
"""`Timer.put`, or what does the same."""

_CLOEXEC: Final = os.O_CLOEXEC
_NONBLOCK: Final = os.O_NONBLOCK


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """A timerfd and what it is for. Loaded by who needs one: ctypes costs an import.

    Attributes:
        fd: to be polled.
    """

    def __init__(self) -> None:
        self._libc = libc()
        self.fd = self._libc.timerfd_create(CLOCK_MONOTONIC, _CLOEXEC | _NONBLOCK)
        if self.fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._number = count()

    def put(self, seconds: float, do: Callable[[], object]) -> None:
        """Do something so many seconds from now, by `run_due`; what is due at once in order."""
        entry = (monotonic() + seconds, next(self._number), do)
        heapq.heappush(self._later, entry)
        if self._later[0] is entry:
            self._set()

    @property
    def pending(self) -> float | None:
        """Seconds until the first of all is due; None: nothing waits."""
        return self._later[0][0] - monotonic() if self._later else None

    def run_due(self, *, all_of_it: bool = False) -> None:
        """Do what is due; `all_of_it`: whatever it waits for."""
        with suppress(BlockingIOError):
            os.read(self.fd, 8)
        now = monotonic()
        while self._later and (all_of_it or self._later[0][0] <= now):
            heapq.heappop(self._later)[2]()
        self._set()

    def _set(self) -> None:
        if not self._later:
            return
        wait = max(self._later[0][0] - monotonic(), 1e-9)  # 0 would stop it
        value = _Timespec(int(wait), max(int(wait % 1 * 1e9), 1))
        spec = _Timerspec(_Timespec(0, 0), value)
        self._libc.timerfd_settime(self.fd, 0, ctypes.byref(spec), None)

    def abandon(self) -> None:
        """Forget all, and release the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        self._later.clear()
        if fd >= 0:
            os.close(fd)
