"""Driving disks' engines without a server: for work that keeps many requests in flight."""

from __future__ import annotations

import select
from collections.abc import Callable

from tapcore.disk import Disk
from tapcore.engine import Engine, engine_of
from tapcore.interface.models import DiskDriver


class EngineLoop:
    """The poll set of one disk, or of several that are worked on together.

    Args:
        disks: open; nobody else may use them while requests are in flight here. One that is named
            twice is polled once.

    Attributes:
        engine: of the first disk, to submit requests to.
    """

    __slots__ = ("_engines", "_poll", "_sources", "engine")

    def __init__(self, *disks: Disk) -> None:
        self._engines = list(dict.fromkeys(engine_of(disk.state) for disk in disks))
        self.engine = self._engines[0]
        self._poll = select.poll()
        self._sources: dict[int, tuple[Engine, DiskDriver, int]] = {}
        for engine in self._engines:
            for fd, dd, sid in engine.poll_fds():
                self._poll.register(fd, select.POLLIN)
                self._sources[fd] = (engine, dd, sid)

    def turn(self) -> None:
        """Submit what was queued."""
        for engine in self._engines:
            engine.turn()

    def wait(self) -> None:
        """Wait until something has finished, and handle it."""
        timeouts = [engine.timeout for engine in self._engines]
        soonest = min((t for t in timeouts if t is not None), default=None)
        for fd, _ in self._poll.poll(None if soonest is None else soonest * 1000):
            engine, dd, sid = self._sources[fd]
            engine.readable(dd, sid)
        self.turn()

    def run_until(self, done: Callable[[], bool]) -> None:
        """Submit what was queued, and handle what finishes, until `done()` holds."""
        self.turn()
        while not done():
            self.wait()
