"""An end for work that takes too long."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator
from types import FrameType

from tapcore.errors import TapError


class TimeLimitError(TapError):
    """It was not done in the time that it was given."""


@contextlib.contextmanager
def ended_after(seconds: float | None, image: str) -> Iterator[None]:
    """Raise TimeLimitError in work that is not done by then.

    Args:
        seconds: None: however long it takes.
        image: for the message.
    """
    if seconds is None:
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        text = f"took longer than {seconds:g} s: not looked at"
        raise TimeLimitError(text, image=image, errno=errno.ETIMEDOUT)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
