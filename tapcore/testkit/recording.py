"""What a power loss can leave of the files that a driver was writing: a recorder and a replayer.

    with Recording(path) as recording:
        ...                                    # work on the image through tapcore
        disk.sync()
        flushed_at = recording.now()
    for state in recording.states(rng, 100):   # and recording.prefixes()
        state.write({path: copy})              # and look at the copy

The recorder stands where `ImageFile`, or the driver itself, calls the kernel by functions of `os`.
It notes every write, hole and change of
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
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, Literal, Self
from unittest.mock import patch

from tapcore.files.imagefile import ImageFile
from tapcore.testkit.crashstates import (
    NEVER,
    SECTOR,
    Barrier,
    Change,
    State,
    torn,
    way_of_losing,
)
from tapcore.testkit.recordedcalls import CALLS, METHODS, OpenFile, call_of, method_of

_PATIENCE_SECONDS: Final = 10.0


class UnrecordedError(AssertionError):
    """A file was changed in a way that the recorder cannot see."""


class Recording:
    """Records what happens to some files from `with` to the end of its block.

    What is in the files at the beginning counts as safe. At the end the files must hold what the
    record says: whatever gets around the recorder (a file object of Python's, a memory map) raises
    `UnrecordedError`.

    Args:
        paths: of the files.

    Attributes:
        changes: all of them in the order in which they began.
        barriers: all of them.
        before: the files' content at the beginning.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.before: Mapping[str, bytes] = {
            os.path.realpath(path): Path(path).read_bytes() for path in paths
        }
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
        for cls, name, wrapper in METHODS:
            original = getattr(cls, name)
            wrapped = method_of(self, wrapper, original)
            self._patches.enter_context(patch.object(cls, name, wrapped))
        for name, call in CALLS.items():
            original = getattr(os, name)
            self._patches.enter_context(patch.object(os, name, call_of(self, call, original)))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._wait_for_threads()
        self._patches.close()
        if kind is None:
            self._settle()

    def _wait_for_threads(self) -> None:
        """What they have begun, as a hole that is punched behind a flush, comes to its end."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while any(change.done == NEVER for change in list(self.changes)):
            if time.monotonic() > give_up:
                return
            time.sleep(0.001)

    def covers(self, file: ImageFile) -> bool:
        """Whether a file is one of those recorded."""
        return os.path.realpath(file.path) in self.before

    def begin(
        self,
        file: ImageFile | OpenFile,
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

    def barrier(self, file: ImageFile | OpenFile, began: int) -> None:
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
                raise UnrecordedError(
                    f"{path} was written to by other ways than ImageFile's methods and os.pwrite"
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
