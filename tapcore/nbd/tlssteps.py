"""Steps of TLS handshakes, in threads: while one is computed, other clients are served.

A signature with a key of RSA takes a millisecond or more, without the interpreter's lock. Records
are no work for threads: to wake one costs about as much as to decrypt 64 KiB. The threads are not
those of disks, since they have a lower priority.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

from tapcore.engine.loop import Loop
from tapcore.process.workers import Completions

MOST_THREADS: Final = 4

_NICER: Final = 10
"""So much lower is the priority of the threads. In the lowest class (SCHED_IDLE) one that has the
interpreter's lock could be kept from going on by anything on a busy machine, and the loop with it.
"""


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
        self._most = threads_for_steps()
        self._threads: list[threading.Thread] = []
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        self._completions = Completions()
        self._under_way = 0
        loop.add(self._completions.eventfd, self._take)

    def put(self, step: Step) -> None:
        """Have it done.

        Raises:
            OSError: there is no thread for it.
        """
        if len(self._threads) < min(self._under_way + 1, self._most):
            self._start_thread()
        self._under_way += 1
        self._steps.put(step)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="tapcore-tls", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # no more threads: those that there are must do
            if not self._threads:
                raise OSError(errno.EAGAIN, str(exc)) from None
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        # they are for a thread that looks after them
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _give_way()
        while True:
            step = self._steps.get()
            if step is None:
                return
            step.run()
            self._completions.add(0, step)
            del step  # holds no connection while idle

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
        for _ in self._threads:
            self._steps.put(None)
        for thread in self._threads:
            thread.join()
        self._loop.remove(self._completions.eventfd)
        self._completions.close()


def _give_way() -> None:
    """Whoever wakes up goes before this thread: the loop, and clients on this machine.

    A thread that the user wanted to be scheduled otherwise stays as it is.
    """
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            # of this thread alone, as Linux has it
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
