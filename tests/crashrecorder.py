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
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self
from unittest.mock import patch

import attrs

from tapcore.imagefile.direct import DirectFile
from tapcore.imagefile.imagefile import ImageFile

SECTOR = 512
NEVER = 1 << 62


@attrs.define(eq=False)
class Change:
    """Something that was done to a file.

    Attributes:
        path: of the file.
        kind: "write", "zero" (a hole was punched, or the like), "size".
        offset: bytes; of a "write" at a sector's start, once the recording is over.
        data: what was written; after the recording filled up to whole sectors.
        end: of the range (bytes), or the new size.
        began: moment before the system call.
        done: moment after it.
        safe: moment at which an fdatasync that covers it was done.
        metadata: it came through `write_metadata`.
    """

    path: str
    kind: Literal["write", "zero", "size"]
    offset: int
    data: bytes
    end: int
    began: int
    done: int = NEVER
    safe: int = NEVER
    metadata: bool = False

    def __str__(self) -> str:
        what = {"write": "write", "zero": "zero", "size": "resize to"}[self.kind]
        where = f"{self.offset:#x}+{self.end - self.offset:#x}" if self.kind != "size" else self.end
        return f"{self.began}: {os.path.basename(self.path)} {what} {where}"

    def apply(self, content: bytearray, sectors: set[int] | None = None) -> None:
        """Do it to a file's content.

        Args:
            content: of the file.
            sectors: of a write: those of its sectors that reach the disk; None for all.
        """
        if self.kind == "size":
            del content[self.end :]
            content.extend(bytes(self.end - len(content)))
        elif self.kind == "zero":
            end = min(self.end, len(content))
            if end > self.offset:
                content[self.offset : end] = bytes(end - self.offset)
        else:
            self._write(content, sectors)

    def _write(self, content: bytearray, sectors: set[int] | None) -> None:
        content.extend(bytes(max(self.end - len(content), 0)))
        if sectors is None:
            end = min(self.offset + len(self.data), len(content))
            content[self.offset : end] = self.data[: end - self.offset]
            return
        for number in sectors:
            at = self.offset + number * SECTOR
            end = min(at + SECTOR, len(content))
            content[at:end] = self.data[number * SECTOR :][: end - at]


@attrs.frozen
class Barrier:
    """An fdatasync of a file that succeeded: when it began, and when it was done."""

    path: str
    began: int
    done: int


@attrs.frozen(eq=False)
class State:
    """What may be on the disk after a crash.

    Attributes:
        moment: of the crash.
        contents: of every recorded file.
        lost: what had begun, or was even done, and is not there, or not all of it.
    """

    moment: int
    contents: Mapping[str, bytes]
    lost: tuple[str, ...] = ()

    def write(self, places: Mapping[str | Path, str | Path]) -> None:
        """Write the files, each to the place given for it."""
        for path, place in places.items():
            with open(place, "wb") as file:
                _write_sparsely(file.fileno(), self.contents[os.path.realpath(path)])

    def __str__(self) -> str:
        return f"crash at {self.moment}; lost: {', '.join(self.lost) or 'nothing'}"


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
            original = vars(cls)[name]
            wrapped = _method(self, wrapper, original)
            self._patches.enter_context(patch.object(cls, name, wrapped))
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
                yield self.state(rng, moment, lambda change, it=survivor: change is it)
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
        choose = keep or _way_of_losing(rng, [each for each in begun if each.safe > moment])
        lost = []
        for change in begun:
            if change.safe > moment and not choose(change):
                lost.append(str(change))
                continue
            sectors = None
            if change.safe > moment and change.kind == "write" and rng.random() < 0.3:
                sectors = _torn(rng, len(change.data) // SECTOR)
                lost.append(f"{change} (of its sectors there: {sorted(sectors)})")
            change.apply(contents[change.path], sectors)
        now = {path: bytes(content) for path, content in contents.items()}
        return State(moment, now, tuple(lost))


def _way_of_losing(rng: random.Random, pending: list[Change]) -> Callable[[Change], bool]:
    """Which of the changes that may be lost are kept; single survivors find most mistakes."""
    pending = [change for change in pending if change.metadata] or pending
    way = rng.randrange(5)
    if way == 0 or not pending:
        return lambda change: False
    if way == 1:
        survivor = rng.choice(pending)
        return lambda change: change is survivor
    if way == 2:
        victim = rng.choice(pending)
        return lambda change: change is not victim
    share = rng.choice((0.1, 0.5, 0.9))
    if way == 3:  # what came late is there, what came early is not
        start = rng.choice(pending).began
        return lambda change: change.began >= start
    return lambda change: rng.random() < share


def _torn(rng: random.Random, sectors: int) -> set[int]:
    """Some of a write's sectors: its head, its tail, or any."""
    cut = rng.randrange(sectors + 1)
    way = rng.randrange(3)
    if way == 0:
        return set(range(cut))
    if way == 1:
        return set(range(cut, sectors))
    return {number for number in range(sectors) if rng.random() < 0.5}


def _write_sparsely(fd: int, content: bytes) -> None:
    """Write an empty file's content, but for its zeroes."""
    piece = 64 << 10
    zeroes = bytes(piece)
    os.ftruncate(fd, len(content))
    with memoryview(content) as view:
        for start in range(0, len(content), piece):
            part = view[start : start + piece]
            if part != zeroes[: len(part)]:
                os.pwrite(fd, part, start)


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
    rec: Recording, call: Any, file: ImageFile, offset: int, buf: Any, answer: tuple[Any, ...]
) -> Any:
    cb, *rest = answer
    if isinstance(cb, _Answer):  # it had found no room, and comes again
        return call(offset, buf, answer)
    view = memoryview(buf).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    result = call(offset, buf, (_Answer(rec, change, cb), *rest))
    if result:
        rec.finish(change, False)
    return result


@attrs.frozen
class _Answer:
    """A callback that notes the end of a write."""

    recording: Recording
    change: Change
    cb: Callable[..., int]

    def __call__(self, dd: Any, res: int, *args: Any) -> int:
        self.recording.finish(self.change, res == 0)
        return self.cb(dd, res, *args)


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
