"""Driving engines where no server does: submit, wait for what their disks have, and handle it."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Protocol

from tapcore.interface.models import DiskDriver


class Driven(Protocol):
    """What the loop knows of an engine."""

    broken_off: bool
    """An exception has left it in the middle of something."""

    @property
    def in_flight(self) -> int:
        """Requests taken and not finished."""

    @property
    def timeout(self) -> float | None:
        """Seconds after which `turn` must be called even if nothing happens; None: for ever."""

    def poll_fds(self) -> list[tuple[int, DiskDriver, int]]:
        """What is to be polled: (descriptor, image, sid)."""

    def readable(self, dd: DiskDriver, sid: int) -> None:
        """`dd.io_fd[sid]` is readable."""

    def turn(self) -> None:
        """End of a batch."""


class EngineLoop:
    """The poll set of one disk, or of several that are worked on together.

    An exception that a signal's handler raises (Ctrl-C) may come out of the middle of an engine's
    work. Then it is marked as broken off. While the loop only waits, nothing is half done.

    Args:
        engines: nobody else may use them while requests are in flight here. One that is named twice
            is polled once.
        reap: called with an image and its `sid` instead of its engine's `readable`.
    """

    __slots__ = ("_engines", "_poll", "_sources")

    def __init__(
        self, *engines: Driven, reap: Callable[[DiskDriver, int], object] | None = None
    ) -> None:
        self._engines = list(dict.fromkeys(engines))
        self._poll = select.poll()
        self._sources: dict[int, tuple[Callable[[DiskDriver, int], object], DiskDriver, int]] = {}
        for engine in self._engines:
            for fd, dd, sid in engine.poll_fds():
                self._poll.register(fd, select.POLLIN)
                self._sources[fd] = (reap or engine.readable, dd, sid)

    def turn(self) -> None:
        """Submit what was queued."""
        try:
            for engine in self._engines:
                engine.turn()
        except BaseException:
            self.break_off()
            raise

    def break_off(self) -> None:
        """An exception came out of the middle of the engines' work."""
        for engine in self._engines:
            engine.broken_off = True

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until something has finished, and handle it.

        Args:
            seconds: at most; None: as long as it takes.

        Returns:
            Whether something had.
        """
        for engine in self._engines:
            timeout = engine.timeout
            if timeout is not None and (seconds is None or timeout < seconds):
                seconds = timeout
        ready = self._poll.poll(None if seconds is None else seconds * 1000)
        try:
            for fd, _ in ready:
                handle, dd, sid = self._sources[fd]
                handle(dd, sid)
        except BaseException:
            self.break_off()
            raise
        self.turn()
        return bool(ready)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Submit what was queued, and handle what finishes, until `done()` holds."""
        self.turn()
        while not done():
            self.wait()

    def finish(self) -> None:
        """Wait until nothing is under way; not for what was broken off, which never ends."""
        if not any(engine.broken_off for engine in self._engines):
            self.run_until(lambda: not any(engine.in_flight for engine in self._engines))
