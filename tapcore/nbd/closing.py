"""The end of a server's disks: what was answered goes to disk, and no disk keeps the others."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from typing import Final

from tapcore.engine.loop import Deadline, Loop
from tapcore.errors import IOFailedError, TapError
from tapcore.nbd.polled import PolledDisk

log = logging.getLogger(__name__)

GIVE_UP_SECONDS: Final = 20.0
"""How long a disk that was named, since it does not answer, is waited for then."""

_LATE: Final = (
    "%s: waiting for the disk; requests that it has not answered: %d (a signal ends it at once)"
)
_GIVEN_UP: Final = "has not answered: what was not flushed may be lost"


class Closing:
    """Closes disks, each as soon as it has answered all, whatever the others do.

    Args:
        loop: in which they are polled.
        disks: what is to be closed.
        views: of these disks: none of those is closed before all of these are.
    """

    def __init__(
        self, loop: Loop, disks: Sequence[PolledDisk], views: Sequence[PolledDisk] = ()
    ) -> None:
        self._loop = loop
        self._views = list(views)
        self._disks = list(disks)
        self._errors: dict[PolledDisk, TapError] = {}
        self._patience = Deadline(0.0)
        self._named = False
        self._done: Callable[[list[TapError]], object] | None = None

    def run(self, named_after: float) -> list[TapError]:
        """Close them, where nothing else is served by the loop; a disk that was broken off at once.

        Args:
            named_after: seconds after which those are named that have not answered.

        Returns:
            What went wrong, at most once for each disk. One that never answers is one of them.
        """
        ended: list[list[TapError]] = []
        self._loop.after_batch = []
        self.begin(named_after, ended.append)
        while not ended:
            self._loop.run_once()
        return ended[0]

    def begin(self, named_after: float, done: Callable[[list[TapError]], object]) -> None:
        """As `run`, while the loop goes on for others; `done` is called once, with the errors."""
        for disk in self._left():
            if disk.engine.broken_off:
                self._close(disk)
        for disk in self._left():
            disk.flush(self._errors.setdefault)
        self._patience, self._done = Deadline(named_after), done
        self._loop.timeouts = [*self._loop.timeouts, self._next_look]
        self._loop.after_batch = [*self._loop.after_batch, self._step]
        self._look()

    def _left(self) -> list[PolledDisk]:
        return self._views + self._disks

    def _next_look(self) -> float:
        return self._patience.left

    def _step(self) -> None:
        for disk in self._left():
            disk.engine.turn()
        self._look()

    def _look(self) -> None:
        """Close what has answered; the others are named, and after more time given up."""
        for some in (self._views, self._disks):
            if some is self._views or not self._views:
                for disk in [each for each in some if not each.engine.in_flight]:
                    self._close(disk)
        if self._left() and self._patience.passed:
            if self._named:
                self._give_up()
            else:
                self._name_them()
        if not self._left():
            self._end()

    def _name_them(self) -> None:
        self._named, self._patience = True, Deadline(GIVE_UP_SECONDS)
        for disk in self._left():
            if disk.engine.in_flight:
                log.warning(_LATE, disk.name, disk.engine.in_flight)

    def _end(self) -> None:
        done, self._done = self._done, None
        if done is None:  # an answer that came while it ended
            return
        self._loop.timeouts = [each for each in self._loop.timeouts if each != self._next_look]
        self._loop.after_batch = [each for each in self._loop.after_batch if each != self._step]
        done(list(self._errors.values()))

    def _close(self, disk: PolledDisk) -> None:
        (self._views if disk in self._views else self._disks).remove(disk)
        try:
            disk.close()
        except TapError as exc:
            self._errors.setdefault(disk, exc)

    def _give_up(self) -> None:
        """Whoever is inside of what never ends cannot be waited for, nor be asked to let go."""
        for disk in self._left():
            disk.unpoll()
            error = IOFailedError(_GIVEN_UP, image=disk.name, errno=errno.ETIMEDOUT)
            self._errors.setdefault(disk, error)
        self._views, self._disks = [], []
