"""What SIGINT, SIGTERM and SIGHUP do to a tool: an end with a line and without remains."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from tapcore.cli.failures import Stopped

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # the same in plain numbers: the enumerations take 1 ms to make

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS: Final = 0.005


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """For what may be left at any moment: a signal raises `Stopped`; a second one ends at once."""

    def stop(signum: int) -> None:
        raise Stopped(signum)

    with _heard(stop), _raised_again():
        yield


@contextlib.contextmanager
def _raised_again() -> Iterator[None]:
    """Let `Stopped` take effect also where it was raised in what must not raise.

    Python calls finalisers and weak references at any moment (each import has one); of what they
    raise it prints a traceback, and goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, before_alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Stopped):
            before(lost)
            return
        signum = lost.exc_value.signum

        def again(number: int, frame: FrameType | None) -> None:
            raise Stopped(signum)

        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before_alarm)
        sys.unraisablehook = before


@contextlib.contextmanager
def asking_to_stop() -> Iterator[Callable[[], None]]:
    """For work in pieces: gives what it has to call between them, where a signal takes effect.

    One after the last of them (while all is written to disk, say) does so when the work is done. A
    second signal ends the process at once.
    """
    seen: list[int] = []

    def check() -> None:
        if seen:
            raise Stopped(seen[0])

    with _heard(seen.append):
        yield check
    if seen:
        raise Stopped(seen[0], finished=True)


@contextlib.contextmanager
def finishing_first() -> Iterator[None]:
    """For a short change of an image: a signal takes effect when it is done; a second, at once."""
    seen: list[int] = []
    with _heard(seen.append):
        yield
    if seen:
        raise Stopped(seen[0], finished=True)


@contextlib.contextmanager
def _heard(first: Callable[[int], object]) -> Iterator[None]:
    """Call something at the first signal; from then on each has its plain effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        first(signum)

    try:
        for number in _STOPPING:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # as nohup(1) wants it
                before[number] = handler
                signal.signal(number, note)
        yield
    finally:
        for number in before:
            signal.signal(number, before[number])
