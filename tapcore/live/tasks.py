"""What takes several batches of a loop, written as one story: generators that say what they wait
for.

A step runs between two batches, and must not block; what would is done by a thread meanwhile
(`in_thread`). So all other disks of the loop are served all the time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from tapcore.engine.loop import Deadline, Loop
from tapcore.errors import TapError, open_error
from tapcore.process.workers import WorkerPool

log = logging.getLogger(__name__)

T = TypeVar("T")


class Until:
    """What a task waits for.

    Args:
        holds: asked again after each batch.
        seconds: to wait at most; None: as long as it takes.
    """

    __slots__ = ("_deadline", "holds")

    def __init__(self, holds: Callable[[], object], seconds: float | None = None) -> None:
        self.holds = holds
        self._deadline = None if seconds is None else Deadline(seconds)

    @property
    def over(self) -> bool:
        """Whether it holds, or was waited for long enough."""
        return bool(self.holds()) or (self._deadline is not None and self._deadline.passed)

    @property
    def left(self) -> float | None:
        """Seconds; None: for ever."""
        return None if self._deadline is None else self._deadline.left


Steps: TypeAlias = Generator[Until, None, T]
"""The steps of a task; what it returns is its result."""

Done: TypeAlias = Callable[[Any, TapError | None], object]
"""Told of the end of a task: its result, or what went wrong."""


class _Task:
    __slots__ = ("done", "steps", "wait")

    def __init__(self, steps: Steps[Any], done: Done) -> None:
        self.steps = steps
        self.done = done
        self.wait: Until | None = None


class Tasks:
    """The tasks of one loop.

    Args:
        loop: in which they run.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pool = WorkerPool()
        self._tasks: list[_Task] = []
        self._went_on = False
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.add(self._woken, self._wake)
        loop.after_batch.append(self._turn)
        loop.timeouts.append(self._timeout)

    def start(self, steps: Steps[Any], done: Done) -> None:
        """Begin a task; its first step is done in the next batch.

        Args:
            steps: of the task.
            done: told of its end.
        """
        self._tasks.append(_Task(steps, done))
        self._went_on = True

    @property
    def running(self) -> bool:
        """Whether there are any."""
        return bool(self._tasks)

    def in_thread(self, work: Callable[[], T]) -> Steps[T]:
        """Let a thread do what would block the loop.

        Returns:
            What `work` returns; what it raises is raised here.
        """
        found: list[tuple[T | None, BaseException | None]] = []

        def run() -> int:
            try:
                found.append((work(), None))
            except BaseException as exc:
                found.append((None, exc))
            os.eventfd_write(self._woken, 1)
            return 0

        self._pool.put(run, (), None, None)
        yield Until(lambda: found)
        result, error = found[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    # ---- in the loop ------------------------------------------------------------------------

    def _wake(self, _: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._woken)

    def _timeout(self) -> float | None:
        if self._went_on:  # what it has submitted is for the next batch
            return 0.0
        left = (task.wait.left for task in self._tasks if task.wait is not None)
        return min((seconds for seconds in left if seconds is not None), default=None)

    def _turn(self) -> None:
        """One step of each task that waits for nothing any more."""
        self._went_on = False
        for task in list(self._tasks):
            if task.wait is None or task.wait.over:
                self._went_on = True
                self._step(task)

    def _step(self, task: _Task) -> None:
        result, error = None, None
        try:
            task.wait = next(task.steps)
            return
        except StopIteration as end:
            result = end.value
        except Exception as exc:
            if not isinstance(exc, OSError):
                log.exception("a change of a served disk failed")
            error = open_error(exc, "")
        self._tasks.remove(task)
        task.done(result, error)

    def close(self) -> None:
        """Forget what is left, and the place in the loop."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            with suppress(Exception):
                task.steps.close()
        self._loop.remove(self._woken)
        leave(self._loop, self._turn, self._timeout)
        if not tasks:  # else a thread may still tell of its end
            os.close(self._woken)


def leave(loop: Loop, turn: Callable[[], object], timeout: Callable[[], float | None]) -> None:
    """Take two calls out of a loop, which may be in the middle of calling one of them."""
    loop.after_batch = [each for each in loop.after_batch if each != turn]
    loop.timeouts = [each for each in loop.timeouts if each != timeout]
