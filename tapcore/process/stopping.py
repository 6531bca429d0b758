"""Signals that ask for an end: the first one asks, and a second one ends the process at once."""

from __future__ import annotations

import ctypes
import errno
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

from tapcore.process.libc import typed_function

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_RELIEF: Final = signal.SIGRTMAX
"""Tells the thread that waits that another one does so from now on."""

_LOOK_SECONDS: Final = 0.02
"""Between two looks whether it has ended, or has heard a signal before."""


class StopSignals:
    """From now on these signals are waited for by a thread, until `close` (main thread only).

    A thread, because the main one may be inside a system call for a disk that never answers, and
    then no handler in Python ever runs. Threads of the worker pool take no signals; where another
    one does, the main thread hears of it, when it can. What is ignored from the start (SIGHUP under
    nohup) stays ignored.

    Args:
        asked: called once, at the first signal, in whatever thread finds it; it must not block.
            The next signal ends the process, as the kernel does it.
        signals: their numbers.

    Raises:
        OSError: EAGAIN, no thread can be started.
    """

    def __init__(self, asked: Callable[[], object], signals: Iterable[int] = STOP_SIGNALS) -> None:
        self._asked = asked
        ignored = {n for n in signals if n == signal.SIGHUP and _is_ignored(n)}
        self._numbers = set(signals) - ignored
        self._changing = threading.RLock()  # a handler may run inside of what holds it
        self._heard = self._closed = False
        self._waiting = True
        self._over = threading.Event()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._numbers, _RELIEF})
        self._before: dict[int, Any] = {n: signal.getsignal(n) for n in self._numbers}
        for number in self._numbers:
            signal.signal(number, self._handle)
        try:
            self._thread = self._new_thread()
        except OSError:
            self._restore()
            raise

    def _new_thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._wait, name="tapcore-stop", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            raise OSError(errno.EAGAIN, str(exc)) from None
        return thread

    def renew_thread(self) -> None:
        """Let a new thread wait: it has the rights that its caller, the main thread, has by now.

        No signal is missed meanwhile, since none is let in. One that was heard before has its way.

        Raises:
            OSError: EAGAIN, no thread can be started: no signal is heard any more.
        """
        old = self._thread
        if self._heard:
            return
        signal.pthread_kill(old.ident or 0, _RELIEF)
        while old.is_alive() and self._waiting:
            old.join(_LOOK_SECONDS)
        if self._waiting:
            self._thread = self._new_thread()

    def _wait(self) -> None:
        # the main thread may have let them in, after one that it has heard itself
        signal.pthread_sigmask(signal.SIG_BLOCK, {*self._numbers, _RELIEF})
        if signal.sigwait({*self._numbers, _RELIEF}) == _RELIEF:
            return
        with self._changing:
            self._waiting = False
        self._first()
        self._over.wait()  # with the signals let in: the next one comes here, and ends it all

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._first()

    def _first(self) -> None:
        with self._changing:
            if self._heard or self._closed:
                return
            self._heard = True
            _let_them_kill(self._numbers)
            self._asked()

    def close(self) -> None:
        """The signals mean again what they meant before; `asked` is not called any more."""
        with self._changing:
            self._closed = True
            if self._waiting:
                signal.pthread_kill(self._thread.ident or 0, next(iter(self._numbers)))
        self._over.set()
        self._thread.join()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _let_them_kill(numbers: set[int]) -> None:
    """In this thread, and as the kernel does it: Python sets no handlers but in the main thread."""
    call = typed_function("signal")
    call.argtypes, call.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for number in numbers:
        call(number, None)  # SIG_DFL
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
