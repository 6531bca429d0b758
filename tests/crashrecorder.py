"""What a crash can leave of the files that a driver was writing: a recorder and a replayer.

    with Recording(path) as recording:
        ...                                    # work on the image through tapcore
        disk.sync()
        flushed_at = recording.now()
    for state in recording.states(rng, 100):   # and recording.prefixes()
        state.write({path: copy})              # and look at the copy

The recorder stands where `ImageFile` calls the kernel. It notes every write, hole and change of
size, when it began and when it was done, and every fdatasync. One that is done has made safe
whatever was done before it began; nothing else is promised. So the replayer leaves out, in any
combination, what no fdatasync has covered at the moment of the crash, and tears what it leaves in:
of a write any of its 512-byte sectors may have reached the disk, as page cache and disk write back
in any order.
"""

import itertools
import operator
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self
from unittest.mock import patch

import attrs

from crashstates import NEVER, SECTOR, Barrier, Change, State, torn, way_of_losing
from tapcore.files.direct import DirectFile
from tapcore.files.imagefile import ImageFile
from tapcore.interface.answer import AnswerTuple, Then, as_then

__all__ = ["NEVER", "Change", "Recording", "State"]


class Recording:
    """Records what happens to some files from `with` to the end of its block.

    What is in the files at the beginning counts as safe. At the end the files must hold what the
    record says: whatever gets around `ImageFile` fails the test.

    Args:
        paths: of the files.

    Attributes:
        changes: all of them in the order in which they began.
        barriers: all of them.
        before: the files' content at the beginning.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.before = {os.path.realpath(path): Path(path).read_bytes() for path in paths}
        self.changes: list[Change] = []
        self.barriers: list[Barrier] = []
        self._clock = itertools.count(1)
        self._lock = threading.Lock()
        self._patches = ExitStack()

    def now(self) -> int:
        """A moment: later than all before, earlier than all to come."""
        return next(self._clock)

    # ---- recording --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for cls, name, wrapper in _WRAPPERS:
            original = getattr(cls, name)
            wrapped = _method(self, wrapper, original)
            self._patches.enter_context(patch.object(cls, name, wrapped))
        # what is safe is a matter of the record: the disk itself need not be waited for
        self._patches.enter_context(patch.object(os, "fdatasync", lambda fd: None))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._patches.close()
        if kind is None:
            self._settle()

    def covers(self, file: ImageFile) -> bool:
        """Whether a file is one of those recorded."""
        return os.path.realpath(file.path) in self.before

    def begin(
        self,
        file: ImageFile,
        kind: Literal["write", "zero", "size"],
        offset: int,
        end: int,
        data: bytes = b"",
    ) -> Change:
        """Note that something begins; it counts from now on, unless it is forgotten."""
        with self._lock:
            path = os.path.realpath(file.path)
            change = Change(path, kind, offset, data, end, self.now())
            self.changes.append(change)
            return change

    def finish(self, change: Change, ok: bool) -> None:
        """It is over; what failed never was."""
        change.done = self.now()
        if not ok:
            with self._lock:
                self.changes.remove(change)

    def barrier(self, file: ImageFile, began: int) -> None:
        """An fdatasync that began at a moment has succeeded."""
        with self._lock:
            self.barriers.append(Barrier(os.path.realpath(file.path), began, self.now()))

    def _settle(self) -> None:
        """Bring writes to whole sectors, with what the page cache held around them."""
        contents = {path: bytearray(content) for path, content in self.before.items()}
        for change in self.changes:
            content = contents[change.path]
            change.apply(content)
            if change.kind == "write":
                start, end = change.offset & -SECTOR, -(-change.end // SECTOR) * SECTOR
                padded = bytes(content[start:end])
                change.offset, change.data = start, padded.ljust(end - start, b"\0")
            change.safe = min(
                (b.done for b in self.barriers if b.path == change.path and b.began > change.done),
                default=NEVER,
            )
        for path, content in contents.items():
            if Path(path).read_bytes() != content:
                raise AssertionError(
                    f"{path} was written to by other ways than ImageFile's methods"
                )

    # ---- replaying --------------------------------------------------------------------------

    @property
    def moments(self) -> list[int]:
        """Those at which what can be lost changes: a change has begun, a barrier is nearly done."""
        found = {change.began for change in self.changes}
        return sorted(found | {barrier.done - 1 for barrier in self.barriers})

    def prefixes(self, step: int = 1) -> Iterator[State]:
        """The files after each change, when all is written in order and nothing lost.

        Args:
            step: only every so many changes.
        """
        contents = {path: bytearray(content) for path, content in self.before.items()}
        yield State(0, self.before)
        for number, change in enumerate(self.changes, 1):
            change.apply(contents[change.path])
            if number % step == 0 or number == len(self.changes):
                now = {path: bytes(content) for path, content in contents.items()}
                yield State(change.began, now)

    def states(self, rng: random.Random, count: int) -> Iterator[State]:
        """Files after crashes at random moments, with random losses.

        Every window between barriers is visited about equally often, if there are enough states. In
        a third of them one write of metadata has survived alone: first headers (at offset 0), then
        those whose place was written least often.
        """
        moments = self.moments
        windows = sorted({barrier.done - 1 for barrier in self.barriers})
        places = Counter(change.offset for change in self.changes if change.metadata)
        alone = [change for change in self.changes if change.metadata]
        alone.sort(key=lambda it: (it.offset > 0, places[it.offset], rng.random()))
        order: list[int] = []
        for number in range(count):
            if number % 3 == 0 and number // 3 < len(alone):
                survivor = alone[number // 3]
                moment = min(survivor.safe, moments[-1] + 1) - 1
                yield self.state(rng, moment, partial(operator.is_, survivor))
                continue
            if not order:
                order = rng.sample(windows, len(windows))
                order += [rng.choice(moments) for _ in windows]
            yield self.state(rng, order.pop(0))

    def state(
        self, rng: random.Random, moment: int, keep: Callable[[Change], bool] | None = None
    ) -> State:
        """The files after a crash at a moment.

        Args:
            rng: decides what is lost, and how writes are torn.
            moment: of the crash.
            keep: says instead which of the changes that may be lost are there.
        """
        contents = {path: bytearray(content) for path, content in self.before.items()}
        begun = [change for change in self.changes if change.began <= moment]
        choose = keep or way_of_losing(rng, [each for each in begun if each.safe > moment])
        lost = []
        for change in begun:
            if change.safe > moment and not choose(change):
                lost.append(str(change))
                continue
            sectors = None
            if change.safe > moment and change.kind == "write" and rng.random() < 0.3:
                sectors = torn(rng, len(change.data) // SECTOR)
                lost.append(f"{change} (of its sectors there: {sorted(sectors)})")
            change.apply(contents[change.path], sectors)
        now = {path: bytes(content) for path, content in contents.items()}
        return State(moment, now, tuple(lost))


# ---- the methods of ImageFile that call the kernel ---------------------------------------------


def _method(recording: Recording, wrapper: Any, original: Any) -> Any:
    def method(self: ImageFile, *args: Any, **kwargs: Any) -> Any:
        if not recording.covers(self):
            return original(self, *args, **kwargs)
        return wrapper(recording, partial(original, self), self, *args, **kwargs)

    return method


def _doing(recording: Recording, call: Any, change: Change) -> Any:
    try:
        result = call()
    except BaseException:
        recording.finish(change, False)
        raise
    recording.finish(change, True if result is None else result == 0)
    return result


def _write_now(rec: Recording, call: Any, file: ImageFile, offset: int, buf: Any) -> Any:
    view = memoryview(buf).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    result = call(offset, buf)
    rec.finish(change, result == 0)  # None: it is queued, and comes again
    return result


def _write(rec: Recording, call: Any, file: ImageFile, offset: int, buf: Any) -> Any:
    view = memoryview(buf).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    return _doing(rec, partial(call, offset, buf), change)


def _write_metadata(rec: Recording, call: Any, file: ImageFile, offset: int, data: Any) -> Any:
    view = memoryview(data).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    change.metadata = True
    return _doing(rec, partial(call, offset, data), change)


def _punch(rec: Recording, call: Any, file: ImageFile, offset: int, length: int, *more: Any) -> Any:
    change = rec.begin(file, "zero", offset, offset + length)
    return _doing(rec, partial(call, offset, length, *more), change)


def _resize(rec: Recording, call: Any, file: ImageFile, size: int) -> Any:
    change = rec.begin(file, "size", size, size)
    return _doing(rec, partial(call, size), change)


def _truncate_up(rec: Recording, call: Any, file: ImageFile, size: int) -> Any:
    if size <= file.size:
        return call(size)
    return _resize(rec, call, file, size)


def _flush(rec: Recording, call: Any, file: ImageFile) -> Any:
    began = rec.now()
    result = call()
    if result == 0:
        rec.barrier(file, began)
    return result


def _close(rec: Recording, call: Any, file: ImageFile) -> Any:
    file.drain()
    began = rec.now()
    result = call()
    if not file.read_only:
        rec.barrier(file, began)
    return result


def _queue_direct(
    rec: Recording, call: Any, file: ImageFile, offset: int, buf: Any, then: Then | AnswerTuple
) -> Any:
    if isinstance(then, _Then):  # it had found no room, and comes again
        return call(offset, buf, then)
    view = memoryview(buf).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    result = call(offset, buf, _Then(rec, change, as_then(then)))
    if result:
        rec.finish(change, False)
    return result


@attrs.frozen
class _Then:
    """What follows a write, and notes its end."""

    recording: Recording
    change: Change
    then: Then

    def __call__(self, res: int) -> int:
        self.recording.finish(self.change, res == 0)
        return self.then(res)


_WRAPPERS: tuple[tuple[type[ImageFile], str, Any], ...] = (
    (ImageFile, "write_now", _write_now),
    (ImageFile, "write_blocking", _write),
    (ImageFile, "write_metadata", _write_metadata),
    (ImageFile, "zero_blocking", _punch),
    (ImageFile, "discard_blocking", _punch),
    (ImageFile, "flush_blocking", _flush),
    (ImageFile, "resize", _resize),
    (ImageFile, "truncate_up", _truncate_up),
    (ImageFile, "close", _close),
    (DirectFile, "queue_write", _queue_direct),
)
