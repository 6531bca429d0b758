"""A small pool of threads for what would block the loop; answers wake the loop by an eventfd."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any, Final

from tapcore.errors import errno_of

MAX_THREADS: Final = 8

Task = tuple[Callable[..., int], tuple[Any, ...], "Completions | None", Any]


class Completions:
    """Finished work of one open file: results and what they belong to.

    Attributes:
        eventfd: becomes readable when something has finished.
    """

    __slots__ = ("_adding", "_done", "eventfd")

    def __init__(self) -> None:
        self._done: deque[tuple[int, Any]] = deque()
        self._adding = threading.Lock()
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def add(self, res: int, token: Any) -> None:
        """Called by a worker: 0 or -errno, and the token of the work."""
        with self._alone():
            self._done.append((res, token))
            os.eventfd_write(self.eventfd, 1)

    def take(self) -> list[tuple[int, Any]]:
        """All that has finished since the last call."""
        done = self._done
        return [done.popleft() for _ in range(len(done))]

    def close(self) -> None:
        """Release the eventfd; no work may be under way."""
        with self._alone():  # the last result can be taken before its worker has told of it
            os.close(self.eventfd)

    def _alone(self) -> AbstractContextManager[object]:
        """The lock; none at the interpreter's end, when a thread that had it goes on no more."""
        return nullcontext() if sys.is_finalizing() else self._adding


class WorkerPool:
    """Threads, started as work arrives and kept; daemonic, since they hold no state."""

    def __init__(self, threads: int = MAX_THREADS) -> None:
        self._limit = threads
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._threads = 0
        self._unfinished = 0
        self._lock = threading.Lock()

    def put(
        self, work: Callable[..., int], args: tuple[Any, ...], to: Completions | None, token: Any
    ) -> None:
        """Run `work(*args)`, which returns 0 or -errno or raises; then `to.add(result, token)`.

        Without `to` nobody is told.

        Raises:
            OSError: EAGAIN, no thread can be started and there is none; nothing was taken.
        """
        if sys.is_finalizing():  # a disk that nobody closed: daemonic threads run no more
            do_task(work, args, to, token)
            return
        with self._lock:
            if self._threads <= self._unfinished and self._threads < self._limit:
                self._start_thread()
            self._unfinished += 1
        self._tasks.put((work, args, to, token))

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._run, name="tapcore-io", daemon=True).start()
        except RuntimeError as exc:  # no more threads: those that there are must do
            if not self._threads:
                raise OSError(errno.EAGAIN, str(exc)) from None
        else:
            self._threads += 1

    def _run(self) -> None:
        # they are for a thread that looks after them; this one may wait for a disk for ever
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        get = self._tasks.get
        while True:
            do_task(*get())  # holds no buffer while idle
            with self._lock:
                self._unfinished -= 1


def do_task(
    work: Callable[..., int], args: tuple[Any, ...], to: Completions | None, token: Any
) -> None:
    """Do a task now, in this thread."""
    try:
        res = work(*args)
    except Exception as exc:
        res = -errno_of(exc)
    if to is not None:
        to.add(res, token)


class Lane:
    """Tasks of which one is done at a time, in order, by any thread of the pool.

    For writes to one file: the kernel lets in one at a time, and threads that wait for each other
    there would only burn time.
    """

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        self._running = False
        self._lock = threading.Lock()

    def put(
        self, work: Callable[..., int], args: tuple[Any, ...], to: Completions, token: Any
    ) -> None:
        """As `WorkerPool.put`."""
        with self._lock:
            self._tasks.append((work, args, to, token))
            if self._running:
                return
            self._running = True
        try:
            shared_pool().put(self._go, (), None, None)
        except OSError:
            with self._lock:
                self._running = False
                self._tasks.pop()
            raise

    def _go(self) -> int:
        while True:
            with self._lock:
                if not self._tasks:
                    self._running = False
                    return 0
                task = self._tasks.popleft()
            do_task(*task)
            del task  # holds no buffer while it waits for the lock


_pool: tuple[int, WorkerPool] | None = None


def shared_pool() -> WorkerPool:
    """The process's pool; a forked child gets one of its own."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = (os.getpid(), WorkerPool())
    return _pool[1]
