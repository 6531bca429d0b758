"""A small pool of threads for what would block the loop; its answers wake the loop by an eventfd."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

from tapcore.errors import errno_of

MAX_THREADS: Final = 8

Task = tuple[Callable[..., int], tuple[Any, ...], "Completions", Any]


class Completions:
    """Finished work of one open file: results and what they belong to.

    Attributes:
        eventfd: becomes readable when something has finished.
    """

    __slots__ = ("_done", "eventfd")

    def __init__(self) -> None:
        self._done: deque[tuple[int, Any]] = deque()
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def add(self, res: int, token: Any) -> None:
        """Called by a worker: 0 or -errno, and the token of the work."""
        self._done.append((res, token))
        os.eventfd_write(self.eventfd, 1)

    def take(self) -> list[tuple[int, Any]]:
        """All that has finished since the last call."""
        done = self._done
        return [done.popleft() for _ in range(len(done))]

    def close(self) -> None:
        """Release the eventfd; no work may be under way."""
        os.close(self.eventfd)


class WorkerPool:
    """Threads, started as work arrives and kept; daemonic, since they hold no state of their own."""

    def __init__(self, threads: int = MAX_THREADS) -> None:
        self._limit = threads
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    def put(
        self, work: Callable[..., int], args: tuple[Any, ...], to: Completions, token: Any
    ) -> None:
        """Run `work(*args)`, which returns 0 or -errno or raises; then `to.add(result, token)`."""
        self._tasks.put((work, args, to, token))
        if self._idle < self._tasks.qsize() and self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._run, name="tapcore-io", daemon=True).start()

    def _run(self) -> None:
        get = self._tasks.get
        while True:
            with self._lock:
                self._idle += 1
            work, args, to, token = get()
            with self._lock:
                self._idle -= 1
            try:
                res = work(*args)
            except Exception as exc:
                res = -errno_of(exc)
            to.add(res, token)
            del work, args, to, token  # hold no buffer while idle


_pool: tuple[int, WorkerPool] | None = None


def shared_pool() -> WorkerPool:
    """The process's pool; a forked child gets one of its own."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = (os.getpid(), WorkerPool())
    return _pool[1]
