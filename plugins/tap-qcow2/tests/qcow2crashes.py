"""Work on a qcow2 image, recorded; and a look at what crashes can leave of it.

`TAPCORE_THOROUGH=10` looks at ten times as many states.
"""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs

import tapcore
from qcow2tools import MIB, checked, create, qemu_img, source_content
from qcow2walk import Walk, walk
from tapcore.files.imagefile import ImageFile
from tapcore.testkit import Recording, State, Workload
from tapcore.tools.check import Repair, check_image

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@attrs.frozen
class Variant:
    """A kind of image, and what is done to it.

    Attributes:
        name: of the test.
        options: of `qemu-img create`.
        size: of the disk, bytes.
        windows: where the work is done: (offset, length) in bytes.
        parent: over a raw parent with content, shorter than the disk.
        compressed: begins with compressed clusters.
        snapshot: begins with a snapshot of some content.
        filled: bytes of the disk that have content to begin with.
        largest: bytes of a request at most.
        batches: of requests.
        states: that are looked at.
        cache: mode in which the work is done.
        late: no write is done at once; in the page cache, too, threads do them.
        flags_lag: COPIED flags may not fit the refcounts after a crash (without a dirty bit that is
            so while a snapshot is made or deleted, with QEMU too): only a repair puts them right.
    """

    name: str
    options: dict[str, Any]
    size: int = 2 << 30
    windows: tuple[tuple[int, int], ...] = ((0, MIB), ((512 << 20) - (512 << 10), MIB), (MIB, MIB))
    parent: bool = False
    compressed: bool = False
    snapshot: bool = False
    filled: int = 0
    largest: int = 256 << 10
    batches: int = 50
    states: int = 20
    cache: tapcore.CacheMode = "writeback"
    late: bool = False
    flags_lag: bool = False


def small(name: str, options: dict[str, Any], size: int = 2 * MIB, **more: Any) -> Variant:
    """All of a small disk is worked on."""
    largest = {"largest": 64 << 10} | more
    return Variant(name, options, size, ((0, size),), **largest)


@attrs.define(slots=False)
class Crashes:
    """One image of a variant in a folder, its recorded history, and a folder for copies of it."""

    variant: Variant
    home: Path
    rng: random.Random
    below: bytes | None = None

    def __attrs_post_init__(self) -> None:
        variant, self.image = self.variant, self.home / "disk.qcow2"
        self.crashed = self.home / "crashed"
        self.crashed.mkdir()
        self.copy = self.crashed / "disk.qcow2"
        self.files = [self.image]
        if variant.parent:
            self.below = source_content(self.rng, variant.size * 3 // 4 if self._is_small else MIB)
            (self.home / "parent.raw").write_bytes(self.below)
            shutil.copy(self.home / "parent.raw", self.crashed)
            create(self.image, variant.size, parent="parent.raw", form="raw", **variant.options)
        elif variant.compressed:
            raw = self.home / "source.raw"
            raw.write_bytes(source_content(self.rng, variant.size))
            options = [f"-o{name}={value}" for name, value in variant.options.items()]
            qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", *options, raw, self.image)
        else:
            create(self.image, variant.size, **variant.options)
        if "data_file" in variant.options:
            self.files.append(self.home / "disk.data")
        if variant.filled:
            with tapcore.open(f"qcow2:{self.image}", readonly=False) as disk:
                disk.pwrite(0, self.rng.randbytes(variant.filled))
        if variant.snapshot:
            with tapcore.open(f"qcow2:{self.image}", readonly=False) as disk:
                for offset, length in variant.windows:
                    disk.pwrite(offset, self.rng.randbytes(length * 2 // 3))
            qemu_img("snapshot", "-c", "before", self.image)

    @property
    def _is_small(self) -> bool:
        return len(self.variant.windows) == 1

    def record(self, change: Callable[[Workload], None] | None = None) -> None:
        """Open it, work on it, and close it; all that is recorded.

        Args:
            change: what is done besides, after every few batches.
        """
        variant = self.variant
        never: Any = patch.object(ImageFile, "write_now", lambda *_: None)
        with (
            never if variant.late else nullcontext(),
            Recording(*self.files) as self.recording,
            tapcore.open(f"qcow2:{self.image}", cache=variant.cache, readonly=False) as disk,
        ):
            self.work = Workload(
                disk, self.recording, self.rng, variant.windows, self.below, variant.largest
            )
            if change is None:
                self.work.run(variant.batches)
            else:
                for _ in range(variant.batches // 4):
                    self.work.run(3)
                    change(self.work)
        self.end = self.recording.now()

    # ---- after a crash ----------------------------------------------------------------------

    def look_everywhere(self, closer: Callable[[State], None] = lambda state: None) -> None:
        """Look at the image after many crashes, and in the end.

        Args:
            closer: looks at `copy` besides.
        """
        recording = self.recording
        count = self.variant.states * THOROUGH
        step = max(len(recording.changes) // count, 1)
        slow = max(count // 4, 1)
        number = 0
        for states in (recording.prefixes(step), recording.states(self.rng, count)):
            for state in states:
                found = self._look(state)
                closer(state)
                number += 1
                if number % slow == 0:
                    self._look_by_qemu(state, found)
                    self._go_on(state)
        last = State(self.end, {path: Path(path).read_bytes() for path in recording.before})
        found = self._look(last)
        closer(last)
        assert not found.leaks, "leaks after a clean close"
        assert not found.incompatible & 1, "it is dirty after a clean close"
        self._look_by_qemu(last, found)

    def _look(self, state: State) -> Walk:
        """The quick part, done to every state: structure, and content as tapcore reads it."""
        state.write({path: self.crashed / path.name for path in self.files})
        found, problems = self._judge(bytes(state.contents[os.path.realpath(self.image)]))
        assert not problems, f"{state}: {problems[:5]}"
        with tapcore.open(f"qcow2:{self.copy}", readonly=True) as disk:
            wrong = self._wrong(state, disk)
        assert not wrong, f"{state}: {wrong}"
        return found

    def _judge(self, content: bytes) -> tuple[Walk, list[str]]:
        found, problems = judge(content)
        return found, found.problems if self.variant.flags_lag else problems

    def _wrong(self, state: State, disk: tapcore.Disk) -> str:
        for offset, length in self.work.windows:
            if wrong := self.work.wrong(state.moment, offset, disk.pread(offset, length=length)):
                return wrong
        return ""

    def _look_by_qemu(self, state: State, found: Walk) -> None:
        """The slow part: QEMU checks and reads it; where it is dirty, repairs it first."""
        image, dirty = self.copy, found.incompatible & 1 or bool(found.copied_wrong)
        if dirty:
            shutil.copy(image, image.with_suffix(".dirty"))
            checked(image, "-r", "all")
        said = checked(image)
        assert not said.get("corruptions"), f"{state}: {said}"
        assert not said["check-errors"], f"{state}: {said}"
        if not dirty:
            assert said.get("leaks", 0) == found.leaks, f"{state}: {said}"
        raw = image.with_suffix(".by-qemu")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
        with open(raw, "rb") as file:
            for offset, length in self.work.windows:
                file.seek(offset)
                wrong = self.work.wrong(state.moment, offset, file.read(length))
                assert not wrong, f"{state}, as QEMU reads it: {wrong}"
        raw.unlink()
        if dirty:
            shutil.move(image.with_suffix(".dirty"), image)

    def _go_on(self, state: State) -> None:
        """Life after the crash: it opens for writing, is written, closed, checked and repaired."""
        image, windows = self.copy, self.work.windows
        rng = random.Random(state.moment)
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            wrong = self._wrong(state, disk)
            assert not wrong, f"{state}, opened for writing: {wrong}"
            for _ in range(10):
                offset, length = rng.choice(windows)
                at = offset + rng.randrange(length // 512) * 512
                disk.pwrite(at, rng.randbytes(min(40 << 10, offset + length - at)))
            want = [disk.pread(offset, length=length) for offset, length in windows]
        found, problems = self._judge(image.read_bytes())
        assert not problems, f"{state}, gone on with: {problems[:5]}"
        assert not found.incompatible & 1, f"{state}, gone on with: still dirty"
        repair: Repair = "all" if self.variant.flags_lag else "leaks"
        result = check_image(f"qcow2:{image}", repair=repair)
        assert not result.leaks, f"{state}: {result}"
        said = checked(image)
        assert not said.get("leaks"), f"{state}: {said}"
        assert not said.get("corruptions"), f"{state}: {said}"
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            assert [disk.pread(offset, length=length) for offset, length in windows] == want


def judge(content: bytes) -> tuple[Walk, list[str]]:
    """What is wrong with an image's metadata; refcounts are not, where the dirty bit is set."""
    found = walk(content)
    problems = found.problems + found.copied_wrong
    if found.incompatible & 1:
        problems = [each for each in found.problems if "refcount of" not in each]
    return found, problems
