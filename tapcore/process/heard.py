"""Signals as wishes, heard in a poll set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any


class HeardSignals:
    """From now on these signals are heard, until `close` (main thread only).

    Python's own handlers run when the main thread comes back from a system call, which no signal
    interrupts that another thread has taken; the wakeup descriptor is written in whatever thread.
    SIGHUP that is ignored from the start (under nohup) stays ignored.

    Args:
        wishes: for each signal's number what `heard` calls.
    """

    def __init__(self, wishes: Mapping[int, Callable[[], object]]) -> None:
        self._wishes = dict(wishes)
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before: dict[int, Any] = {}
        for number in self._wishes:
            before = signal.getsignal(number)
            if number != signal.SIGHUP or before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, lambda number, frame: None)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def heard(self) -> None:
        """Do what the signals that have come are wishes for, each once."""
        came = b""
        with suppress(BlockingIOError):
            came = os.read(self._reader, 4096)
        for number, wish in self._wishes.items():
            if number in came:
                wish()

    def close(self) -> None:
        """The signals mean again what they meant before."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)
