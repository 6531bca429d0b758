"""Disks whose process died are started again: at once, then after pauses, and not for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from tapcore.daemon.disks import FAILED, RESTARTING, Disk
from tapcore.daemon.verbs import Later
from tapcore.errors import describe
from tapcore.process.timer import Timer

log = logging.getLogger(__name__)

DEATHS: Final = 5
DEATHS_SECONDS: Final = 60.0
"""A disk whose process dies more often than that in so long is given up."""

PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Seconds before a process is started again, after its first death, its second, and so on."""


class Restarts:
    """Who brings them back.

    Args:
        timer: of the daemon's loop.
        start: lets a process serve a disk.
        let_go: takes a disk from a process that could not open it.
        wanted: whether a disk is still to be served.
    """

    def __init__(
        self,
        timer: Timer,
        start: Callable[[Disk], Later],
        let_go: Callable[[Disk], object],
        wanted: Callable[[Disk], bool],
    ) -> None:
        self._timer = timer
        self._start = start
        self._let_go = let_go
        self._wanted = wanted
        self._trying: set[Disk] = set()  # from a death until it is served, or that has failed

    def bring_back(self, disk: Disk) -> None:
        """A disk that nobody serves, and whose sockets are there."""
        disk.state = RESTARTING
        self._trying.add(disk)
        self._try(disk)

    def after_death(self, disk: Disk, reason: str) -> None:
        """Its process died, or could not open it.

        One that dies before it serves the disk is told of by who lets it, too: once is enough.
        """
        if disk in self._trying:
            return
        now = monotonic()
        disk.deaths = [each for each in disk.deaths if now - each < DEATHS_SECONDS] + [now]
        disk.reason, disk.state = reason, RESTARTING
        if len(disk.deaths) > DEATHS:
            self._give_up(disk)
            return
        self._trying.add(disk)
        pause = PAUSES[min(len(disk.deaths), len(PAUSES)) - 1]
        self._timer.put(pause, lambda: self._try(disk))

    def _try(self, disk: Disk) -> None:
        if disk.state != RESTARTING or not self._wanted(disk):
            self._trying.discard(disk)
            return

        def tried(result: Any, error: BaseException | None) -> None:
            self._trying.discard(disk)
            if not self._wanted(disk):
                return
            if error is not None:
                log.error("%s: could not be started again: %s", disk.name, describe(error))
                self._let_go(disk)
                self.after_death(disk, describe(error))
                return
            disk.restarts += 1
            pid = None if disk.process is None else disk.process.pid
            log.warning("%s: is served again, by process %s", disk.name, pid)

        self._start(disk).then(tried)

    def _give_up(self, disk: Disk) -> None:
        disk.state = FAILED
        disk.reason = f"given up after {len(disk.deaths)} attempts: {disk.reason}"
        disk.turn_away()
        log.error("%s: %s", disk.name, disk.reason)
