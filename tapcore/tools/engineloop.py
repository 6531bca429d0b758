"""Driving one disk's engine without a server: for work that keeps many requests in flight."""

from __future__ import annotations

import select
from collections.abc import Callable

from tapcore.disk import Disk
from tapcore.engine import engine_of
from tapcore.models import DiskDriver


class EngineLoop:
    """The poll set of one disk.

    Args:
        disk: open; nobody else may use it while requests are in flight here.

    Attributes:
        engine: to submit requests to.
    """

    __slots__ = ("_poll", "_sources", "engine")

    def __init__(self, disk: Disk) -> None:
        self.engine = engine_of(disk.state)
        self._poll = select.poll()
        self._sources: dict[int, tuple[DiskDriver, int]] = {}
        for fd, dd, sid in self.engine.poll_fds():
            self._poll.register(fd, select.POLLIN)
            self._sources[fd] = (dd, sid)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Submit what was queued, and handle what finishes, until `done()` holds."""
        engine = self.engine
        engine.turn()
        while not done():
            timeout = engine.timeout
            for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000):
                engine.readable(*self._sources[fd])
            engine.turn()
