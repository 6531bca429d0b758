"""Signals to a server: to end, or to read its certificates again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

from tapcore.engine.loop import Loop
from tapcore.process.heard import HeardSignals
from tapcore.process.stopping import StopSignals


class ServerSignals:
    """From now on signals are heard, until `close` (main thread only).

    Args:
        numbers: those that ask for an end; SIGHUP is not one of them where there is `reload`.
        loop: of the server.
        stop: called in the loop when there was one.
        soon: the same, called before that in whatever thread has found it, while the loop may be
            held up; it must not block.
        reload: what SIGHUP is a wish for; None: nothing.
    """

    def __init__(
        self,
        numbers: Iterable[int],
        loop: Loop,
        *,
        stop: Callable[[], object],
        soon: Callable[[], object],
        reload: Callable[[], object] | None = None,
    ) -> None:
        self._soon = soon
        self._asked = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.add(self._asked, lambda _: stop())
        wishes = {} if reload is None else {int(signal.SIGHUP): reload}
        # wakes the loop for a signal that a driver's own thread has taken
        self._heard = HeardSignals(wishes)
        loop.add(self._heard.fileno(), lambda _: self._heard.heard())
        self._stopping = StopSignals(self._stop_soon, set(numbers) - set(wishes))

    def _stop_soon(self) -> None:
        os.eventfd_write(self._asked, 1)
        self._soon()

    def taken(self) -> None:
        """The loop knows of the end."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._asked)

    def renew_thread(self) -> None:
        """Let the thread that waits be a new one, with the caller's rights by now."""
        self._stopping.renew_thread()

    def close(self) -> None:
        """The signals mean again what they meant before."""
        self._heard.close()
        self._stopping.close()
        os.close(self._asked)
