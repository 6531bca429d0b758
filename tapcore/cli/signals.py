"""What SIGINT, SIGTERM and SIGHUP do to a tool: an end with a line and without remains."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from tapcore.cli.failures import Stopped

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """For what may be left at any moment: a signal raises `Stopped`; a second one ends at once."""

    def stop(signum: int) -> None:
        raise Stopped(signum)

    with _heard(stop):
        yield


@contextlib.contextmanager
def asking_to_stop() -> Iterator[Callable[[], None]]:
    """For work in pieces: gives what it has to call between them, where a signal takes effect.

    A second signal ends the process at once.
    """
    seen: list[int] = []

    def check() -> None:
        if seen:
            raise Stopped(seen[0])

    with _heard(seen.append):
        yield check


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
