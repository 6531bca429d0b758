"""A host on which nothing comes at once, and everything in an order that chance decides.

While a `LateHost` is entered, what `ImageFile` would give to its pool of threads is kept. Each
`step` lets one of these operations go on up to its next call of the kernel, or gives one answer.
Only one thread runs at a time, so a seed decides everything. `faults` lets calls fail.
"""

import errno
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self
from unittest.mock import patch

import attrs

from tapcore.errors import errno_of
from tapcore.files.imagefile import ImageFile
from tapcore.interface.answer import AnswerTuple, Then, as_then

BLOCKING = (
    "read_blocking",
    "write_blocking",
    "flush_blocking",
    "discard_blocking",
    "zero_blocking",
    "read_metadata",
    "write_metadata",
)
_WRITES = ("write_now", "write_blocking", "write_metadata")
_RAISES = ("read_metadata", "write_metadata", "truncate_up")


class Task:
    """An operation of an image file that is under way, in a thread of its own."""

    def __init__(self, host: "LateHost", file: ImageFile, work: Any, args: Any, then: Then) -> None:
        self.file = file
        self.then = then
        self.result: int | None = None
        self.sleeps_until = 0
        self.name: str = getattr(work, "__qualname__", repr(work))
        self._host = host
        self._work = (work, args)
        self._turn = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def finish(self) -> None:
        """All of it; its answer is still to be given."""
        while self.result is None:
            self.go_on()

    def go_on(self) -> None:
        """Up to the next call of the kernel, or its end."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._host.of_thread[self._thread] = self
            self._thread.start()
        else:
            self._turn.release()
        assert self._host.back.acquire(timeout=60)
        if self.result is not None:
            self._thread.join()

    def _run(self) -> None:
        work, args = self._work
        try:
            result = work(*args)
        except Exception as exc:
            result = -errno_of(exc)
        del self._host.of_thread[threading.current_thread()]
        self.result = result
        self._host.back.release()

    def pause(self) -> None:
        """Called by its own thread."""
        self._host.back.release()
        self._turn.acquire()


@attrs.define(eq=False, slots=False)
class LateHost:
    """See above.

    Attributes:
        rng: decides everything.
        at_once: how often the page cache has what is asked for, 0 to 1.
        slow: how often an operation takes very long, 0 to 1.
        faults: name of a method of `ImageFile`: how often it fails, 0 to 1.
        codes: what it fails with.
        failed: how many calls have failed.
        tasks: what is under way.
        held: of these, what `step` leaves alone.
    """

    rng: random.Random
    at_once: float = 0.0
    slow: float = 0.0
    faults: Mapping[str, float] = attrs.field(factory=dict)
    codes: tuple[int, ...] = (errno.EIO, errno.ENOSPC)
    failed: int = 0
    tasks: list[Task] = attrs.field(factory=list)
    held: set[Task] = attrs.field(factory=set)
    of_thread: dict[threading.Thread, Task] = attrs.field(factory=dict)
    back: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(0))
    _steps: int = 0
    _patches: ExitStack = attrs.field(factory=ExitStack)

    def __enter__(self) -> Self:
        for name in ("read_now", "write_now", "metadata_now"):
            self._patch(name, self._sometimes)
        for name in (*BLOCKING, "truncate_up"):
            self._patch(name, self._paused)
        self._patch("_put", lambda name, real: self._put)
        self._patch("drain", lambda name, real: self._drain)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:  # so that the disk can be closed, and the failure be seen
            self.held.clear()
            self.faults = {}
            for _ in range(10_000):
                if not self.step():
                    break
        self._patches.close()

    def _patch(self, name: str, wrapper: Callable[[str, Any], Any]) -> None:
        wrapped = wrapper(name, getattr(ImageFile, name))

        def method(file: ImageFile, *args: Any) -> Any:
            return wrapped(file, *args)

        self._patches.enter_context(patch.object(ImageFile, name, method))

    # ---- instead of the pool of threads -----------------------------------------------------

    def _put(
        self,
        file: ImageFile,
        work: Any,
        args: tuple[Any, ...],
        then: Then | AnswerTuple,
        lane: Any = None,
    ) -> None:
        file.in_flight += 1
        task = Task(self, file, work, args, as_then(then))
        if self.rng.random() < self.slow:
            task.sleeps_until = self._steps + self.rng.randrange(400)
        self.tasks.append(task)

    def _drain(self, file: ImageFile) -> None:
        while file.in_flight:
            assert self.step(), "an answer will never come"
            file._answer_completions()

    def step(self) -> bool:
        """Let something happen; False: there is nothing."""
        self._steps += 1
        tasks = [task for task in self.tasks if task not in self.held]
        if not tasks:
            return False
        awake = [task for task in tasks if task.sleeps_until <= self._steps]
        task = self.rng.choice(awake or tasks)
        if task.result is None:
            task.go_on()
        else:
            self.tasks.remove(task)
            task.file._completions.add(task.result, task.then)
        return True

    # ---- instead of the kernel --------------------------------------------------------------

    def _sometimes(self, name: str, real: Any) -> Any:
        def now(file: ImageFile, offset: int, what: Any) -> Any:
            if self.rng.random() >= self.at_once:
                return None
            if code := self._fault(name):
                return None if name == "metadata_now" else -code
            return real(file, offset, what)

        return now

    def _paused(self, name: str, real: Any) -> Any:
        def call(file: ImageFile, *args: Any) -> Any:
            task = self.of_thread.get(threading.current_thread())
            if task is not None:
                task.pause()
            if code := self._fault(name):
                if name in _WRITES:
                    self._write_a_part(real, file, *args)
                if name in _RAISES:
                    raise OSError(code, "injected")
                return -code
            return real(file, *args)

        return call

    def _fault(self, name: str) -> int:
        if self.rng.random() >= self.faults.get(name, 0):
            return 0
        self.failed += 1
        return self.rng.choice(self.codes)

    def _write_a_part(self, real: Any, file: ImageFile, offset: int, content: Any) -> None:
        """Whole sectors from the front, as a disk that fails on its way does."""
        view = memoryview(content).cast("B")
        count = self.rng.randrange(len(view) // 512 + 1) * 512
        if count:
            real(file, offset, view[:count])
