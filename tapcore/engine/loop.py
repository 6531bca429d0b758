"""One thread, one poll set: descriptors, deadlines, and what is done once after each batch."""

from __future__ import annotations

import select
from collections.abc import Callable
from time import monotonic
from typing import Final

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
GONE: Final = select.EPOLLHUP | select.EPOLLERR
"""Told whatever a descriptor is polled for; of a socket: nothing can be sent any more."""

_A_MOMENT: Final = 0.001
"""Seconds that a handler waits for more of its own."""
_SOON: Final = 0.1
_MAX_EVENTS: Final = 64  # of one batch; memory for as many is taken at each poll

NOTHING_TO_DO: Final = object()
"""What a handler returns after which nobody has to do anything at the end of the batch."""

Handler = Callable[[int], object]


class Loop:
    """A poll set of epoll.

    Attributes:
        after_batch: called in order after everything that was ready has been handled.
        timeouts: each gives the seconds until it wants `after_batch` to run, or None.
        served: clients of disks that are connected. The handler of the only one may wait for its
            disk for a moment.
        broken_off: an exception came out of the middle of a batch, not out of the wait for one.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._alone = False  # nothing else has happened in this batch, nor will soon
        self.after_batch: list[Callable[[], object]] = []
        self.timeouts: list[Callable[[], float | None]] = []
        self.broken_off = False
        self.served = 0
        self._running = False

    def add(self, fd: int, handler: Handler, events: int = IN) -> None:
        """Call `handler(events)` whenever `fd` is ready."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor (0: only for errors)."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a descriptor, before it is closed."""
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def run(self) -> None:
        """Until `stop`."""
        self._running = True
        while self._running:
            self.run_once()

    def stop(self) -> None:
        """Return from `run` after this batch."""
        self._running = False

    def only(self, fd: int) -> bool:
        """For who was called for a descriptor, and has nothing more to do than to be called again:
        wait for that, a moment, if nobody else wants anything.

        Returns:
            Whether it can be read. If not, go back: what else has happened comes in the next batch.
        """
        if not self._alone:
            return False
        return self._epoll.poll(_A_MOMENT, 2) == [(fd, IN)]

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for one batch and handle it.

        Args:
            timeout: seconds to wait at most; None for as long as it takes.
        """
        for want in self.timeouts:
            seconds = want()
            if seconds is not None and (timeout is None or seconds < timeout):
                timeout = seconds
        handlers, poll = self._handlers, self._epoll.poll
        end = None if timeout is None else monotonic() + timeout
        quiet = True
        while quiet:
            ready = poll(timeout, _MAX_EVENTS)
            self._alone = len(ready) == 1 and (timeout is None or timeout > _SOON)
            quiet = bool(ready) and (timeout is None or timeout > 0)  # nobody wants it now
            try:
                for fd, events in ready:
                    handler = handlers.get(fd)
                    # one handled before it in this batch may have removed it
                    if handler is not None and handler(events) is not NOTHING_TO_DO:
                        quiet = False
            except BaseException:
                self.broken_off = True
                raise
            if quiet and end is not None:
                timeout = end - monotonic()
                if timeout <= 0:
                    return
        try:
            for call in self.after_batch:
                call()
        except BaseException:
            self.broken_off = True
            raise

    def close(self) -> None:
        """Release the poll set."""
        self._epoll.close()


class Deadline:
    """A moment after which something is to be done once.

    Args:
        seconds: from now.
    """

    __slots__ = ("_at",)

    def __init__(self, seconds: float) -> None:
        self._at = monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, never negative."""
        return max(self._at - monotonic(), 0.0)

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return monotonic() >= self._at
