"""Threads for what would block the loop, so many for each disk; answers wake the loop."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from tapcore.errors import errno_of

if TYPE_CHECKING:
    from queue import SimpleQueue

DISK_THREADS: Final = 8
"""That work for one disk at a time."""

PACKING_THREADS: Final = min(len(os.sched_getaffinity(0)) + 1, DISK_THREADS)
"""That pack or unpack for one file: one may wait for the disk meanwhile, and more would only take
the processors from each other."""

_IDLE_THREADS: Final = 2 * DISK_THREADS
"""That are kept for whoever has work next; one more than these ends. A copy has two disks: with
fewer its threads would end and be started again all the time."""

_ABANDONED_SECONDS: Final = 0.001
"""Between two looks whether threads have ended with what is abandoned."""

_THREAD_NAME: Final = "tapcore-io"

_END_SECONDS: Final = 1.0
"""How long a thread is waited for that is to end: a disk may never let it go."""

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
    """Threads, as many as there is work: each disk's `Lane` bounds what it may have of them.

    So a disk that does not answer keeps its own threads waiting, and nobody else's work. They start
    as work arrives; daemonic, since they hold no state.
    """

    def __init__(self) -> None:
        from queue import SimpleQueue  # not for a command that has no work for threads

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
            if self._threads <= self._unfinished:
                self._start_thread()
            self._unfinished += 1
        self._tasks.put((work, args, to, token))

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._run, name=_THREAD_NAME, daemon=True).start()
        except RuntimeError as exc:  # no more threads: those that there are must do
            if not self._threads:
                raise OSError(errno.EAGAIN, str(exc)) from None
        else:
            self._threads += 1

    def end_threads(self) -> None:
        """Let all threads end when they have done what was put before, and wait for that."""
        with self._lock:
            begun, self._threads = self._threads, 0
        for _ in range(begun):
            self._tasks.put((_end_this_thread, (), None, None))
        for thread in threading.enumerate():
            if thread.name == _THREAD_NAME:
                thread.join(_END_SECONDS)

    def _run(self) -> None:
        import signal

        # they are for a thread that looks after them; this one may wait for a disk for ever
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        get = self._tasks.get
        with suppress(_EndOfThread):
            while True:
                do_task(*get())  # holds no buffer while idle
                with self._lock:
                    self._unfinished -= 1
                    if self._threads - self._unfinished > _IDLE_THREADS:
                        self._threads -= 1
                        return


class _EndOfThread(BaseException):
    """Of a worker, asked for by a task."""


def _end_this_thread() -> int:
    raise _EndOfThread


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
    """Tasks of which so many are done at a time, begun in order, by any threads of the pool.

    One lane is a disk's, so that it has its own share of the threads. One of width 1 is for writes
    to one file: the kernel lets in one at a time, and threads that wait for each other there would
    only burn time.

    Args:
        width: tasks at a time.
        within: the wider lane that this one is a part of; None for the pool.

    Attributes:
        abandoned: an exception (Ctrl-C) has left its user in the middle: what was put may never be
            answered, and nobody may wait for it.
    """

    __slots__ = ("_begun", "_lock", "_running", "_tasks", "_width", "_within", "abandoned")

    def __init__(self, width: int = DISK_THREADS, within: Lane | None = None) -> None:
        self._width = width
        self._within = within
        self._tasks: deque[Task] = deque()
        self._running = 0
        self.abandoned = False
        self._begun = 0  # tasks that threads have in hand; not even Ctrl-C makes it wrong
        self._lock = threading.Lock()

    def put(
        self, work: Callable[..., int], args: tuple[Any, ...], to: Completions | None, token: Any
    ) -> None:
        """As `WorkerPool.put`; by one thread alone."""
        with self._lock:
            self._tasks.append((work, args, to, token))
            if self._running >= self._width:
                return
            self._running += 1
        try:
            (self._within or shared_pool()).put(self._go, (), None, None)
        except OSError:
            with self._lock:
                self._running -= 1
                if self._running or not self._tasks:
                    return  # another does it, or has
                self._tasks.pop()
            raise

    def _go(self) -> int:
        begun = 0
        while True:
            with self._lock:
                self._begun -= begun
                if not self._tasks:
                    self._running -= 1
                    return 0
                task = self._tasks.popleft()
                begun = 1
                self._begun += 1
            do_task(*task)
            del task  # holds no buffer while it waits for the lock

    def abandon(self) -> None:
        """Forget what has not begun, and wait for what has: nothing more may be put."""
        self.abandoned = True
        with self._lock:
            self._tasks.clear()
        while self._begun:
            sleep(_ABANDONED_SECONDS)


_pool: tuple[int, WorkerPool] | None = None


def shared_pool() -> WorkerPool:
    """The process's pool; a forked child gets one of its own."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = (os.getpid(), WorkerPool())
    return _pool[1]


def end_idle_threads() -> None:
    """Let the pool's threads end, and new ones do what comes next: they have the caller's rights.

    Called where no work is under way that never ends; a thread that stays is left to itself.
    """
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        return
    pool, _pool = _pool[1], None
    pool.end_threads()
