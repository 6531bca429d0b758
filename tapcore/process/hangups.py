"""SIGHUP as a wish to read files again, heard in a poll set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress


class HangUps:
    """From now on SIGHUP is heard, until `close` (main thread only).

    Python's own handlers run when the main thread comes back from a system call, which no signal
    interrupts that another thread has taken; the wakeup descriptor is written in whatever thread.
    What is ignored from the start (under nohup) stays ignored.

    Args:
        asked: called by `heard`.
    """

    def __init__(self, asked: Callable[[], object]) -> None:
        self._asked = asked
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = signal.getsignal(signal.SIGHUP)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda number, frame: None)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def heard(self) -> None:
        """Ask, if one of the signals was a SIGHUP."""
        with suppress(BlockingIOError):
            if signal.SIGHUP in os.read(self._reader, 4096):
                self._asked()

    def close(self) -> None:
        """The signal means again what it meant before."""
        signal.signal(signal.SIGHUP, signal.SIG_DFL if self._before is None else self._before)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)
