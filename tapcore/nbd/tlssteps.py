"""Steps of TLS handshakes, in threads: while one is computed, other clients are served.

A signature with a key of RSA takes a millisecond or more, without the interpreter's lock. Records
are no work for threads: to wake one costs about as much as to decrypt 64 KiB.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tapcore.engine.loop import Loop
from tapcore.process.workers import Completions, Lane

MOST_THREADS: Final = 4


def threads_for_steps() -> int:
    """One less than there are processors: the loop has one."""
    return max(min(len(os.sched_getaffinity(0)) - 1, MOST_THREADS), 1)


class Step:
    """One that is to be done, or is done.

    Args:
        work: does it; returns whether the handshake is over.
        then: called in the loop when it is done, and was not given up.
    """

    __slots__ = ("_begun", "_failure", "_lock", "_over", "_work", "given_up", "then")

    def __init__(self, work: Callable[[], bool], then: Callable[[Step], object]) -> None:
        self._work = work
        self.then = then
        self.given_up = False
        self._begun = False
        self._lock = threading.Lock()
        self._over = False
        self._failure: Exception | None = None

    def run(self) -> int:
        """In whatever thread."""
        with self._lock:
            if self.given_up:
                return 0
            self._begun = True
        try:
            self._over = self._work()
        except Exception as exc:
            self._failure = exc
        return 0

    def give_up(self) -> bool:
        """Nobody wants it any more: whether it has not begun, and never will."""
        with self._lock:
            self.given_up = not self._begun
        return self.given_up

    def result(self) -> bool:
        """What `work` has returned; raises what it has raised."""
        if self._failure is not None:
            raise self._failure
        return self._over


class Steps:
    """Has them done, and tells of it in a loop.

    Args:
        loop: in which `then` is called.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lane = Lane(threads_for_steps())
        self._completions = Completions()
        self._under_way = 0
        loop.add(self._completions.eventfd, self._take)

    def put(self, step: Step) -> None:
        """Have it done.

        Raises:
            OSError: there is no thread for it.
        """
        self._lane.put(step.run, (), self._completions, step)
        self._under_way += 1

    def _take(self, _: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._completions.eventfd)
        for _res, step in self._completions.take():
            self._under_way -= 1
            if not step.given_up:
                step.then(step)

    def close(self) -> None:
        """Wait for those that were begun: none of them waits for a client."""
        told = select.poll()
        told.register(self._completions.eventfd, select.POLLIN)
        while self._under_way:
            told.poll()
            self._take(0)
        self._loop.remove(self._completions.eventfd)
        self._completions.close()
