"""An end in any case: for a process that was asked to end, and may be stuck in a system call."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Watchdog:
    """A thread that looks whether the process's end makes progress.

    Args:
        stuck: told after a while when the end has not begun: who keeps it; called in the thread.
        seconds: until then.
        more: until the process is ended then, with status 1.
    """

    def __init__(self, stuck: Callable[[], str], seconds: float, more: float) -> None:
        self._stuck = stuck
        self._seconds = seconds
        self._more = more
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tapcore-watchdog", daemon=True)

    def start(self) -> None:
        """The process was asked to end."""
        try:
            self._thread.start()
        except RuntimeError:  # no more threads; a signal ends it all the same
            log.warning("nobody watches the server's end: there can be no more threads")

    def end_has_begun(self) -> None:
        """Nobody is stuck."""
        self._begun.set()

    def _run(self) -> None:
        if self._begun.wait(self._seconds):
            return
        log.warning("%s: the driver does not come back (a signal ends it at once)", self._stuck())
        if self._begun.wait(self._more):
            return
        log.error("%s: ended without it: what was not flushed may be lost", self._stuck())
        logging.shutdown()
        os._exit(1)
