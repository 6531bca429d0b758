"""A crash at any moment leaves at worst lost places, and everything that was flushed.

What is read of a crashed image over its log, and after the log was replayed, here or by QEMU, is
the same. `TAPCORE_THOROUGH=10` looks at ten times as many states.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

import tapcore
from tapcore.testkit import Recording, State, Workload
from tapcore.tools.check import check_image
from tapcore.tools.resize import resize_image
from vhdxtools import (
    KIB,
    MIB,
    content_of,
    header_of,
    make,
    problems,
    qemu_content,
    qemu_io,
    set_entry,
    some_content,
)

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@attrs.frozen
class Variant:
    """A kind of image, and what is done to it.

    Attributes:
        name: of the test.
        size: of the disk, bytes.
        options: of `create`.
        parent: over a parent with content, shorter than the disk.
        metadata_cache: bytes; few make write-backs begin by themselves.
        largest: bytes of a request at most; large ones give up places of whole blocks.
    """

    name: str
    size: int = 3 * MIB - 512
    options: dict[str, str] = attrs.field(factory=dict)
    parent: bool = False
    metadata_cache: int | None = None
    largest: int = 96 * KIB


VARIANTS = [
    Variant("dynamic"),
    Variant("differencing", parent=True),
    Variant("whole blocks", size=4 * MIB, largest=3 * MIB),
    Variant("fixed", options={"subformat": "fixed"}),
    Variant("large sectors", size=3 * MIB - 4096, options={"logical_sector": "4096"}),
]


@attrs.define(slots=False)
class Crashes:
    """One image of a variant, and a folder for copies of it."""

    variant: Variant
    home: Path
    rng: random.Random
    below: bytes | None = None

    def __attrs_post_init__(self) -> None:
        variant, self.image = self.variant, self.home / "disk.vhdx"
        self.copy = self.home / "crashed" / "disk.vhdx"
        self.copy.parent.mkdir()
        parent = "parent.vhdx" if variant.parent else ""
        if variant.parent:
            self.below = some_content(self.rng, variant.size // 2048 * 512 * 3)
            make(self.home / "parent.vhdx", len(self.below))
            with tapcore.open(f"vhdx:{self.home}/parent.vhdx", readonly=False) as disk:
                disk.pwrite(0, self.below)
            shutil.copy2(self.home / "parent.vhdx", self.copy.parent)
        make(self.image, variant.size, parent, **variant.options)

    def open(self, image: Path) -> tapcore.Disk:
        return tapcore.open(
            f"vhdx:{image}", metadata_cache=self.variant.metadata_cache, readonly=False
        )

    def look(self, work: Workload, state: State) -> bytes:
        """The content is one that may be, over the log and after it; the structures make sense."""
        state.write({self.image: self.copy})
        content = content_of(self.copy)
        text = work.wrong(state.moment, 0, content)
        assert not text, f"{state}: {text}"
        return content

    def look_by_qemu(self, state: State, content: bytes) -> None:
        """QEMU replays the log to the same, where it can; `qemu-img` alone would not."""
        if not self.variant.parent and self.variant.options.get("logical_sector") != "4096":
            again = self.copy.with_name("by-qemu.vhdx")
            shutil.copyfile(self.copy, again)
            qemu_io(again, ["read 0 512"])
            assert qemu_content(again) == content, f"{state}, as QEMU reads it"

    def go_on(self, state: State, content: bytes) -> None:
        """It is opened for writing, written, and closed; then what was lost is given back."""
        rng = random.Random(state.moment)
        with self.open(self.copy) as disk:
            assert disk.pread(0, length=disk.size) == content, f"{state}, replayed"
            wrong = problems(self.copy.read_bytes(), closed=False)
            assert not wrong, f"{state}, replayed: {wrong}"
            for _ in range(6):
                at = rng.randrange(disk.size // 512) * 512
                disk.pwrite(at, rng.randbytes(min(40 * KIB, disk.size - at)))
            want = disk.pread(0, length=disk.size)
        wrong = problems(self.copy.read_bytes(), closed=False)
        assert not wrong, f"{state}, gone on with: {wrong}"
        result = check_image(f"vhdx:{self.copy}", repair="leaks")
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
        assert not problems(self.copy.read_bytes(), closed=True), str(state)
        assert content_of(self.copy) == want


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_crash_at_any_moment(variant: Variant, tmp_path: Path, rng: random.Random) -> None:
    crashes = Crashes(variant, tmp_path, rng)
    windows = ((0, variant.size),)
    with Recording(crashes.image) as recording, crashes.open(crashes.image) as disk:
        work = Workload(disk, recording, rng, windows, crashes.below, variant.largest)
        work.run(12)
    assert len(recording.barriers) > 3
    count = 4 * THOROUGH
    step = max(len(recording.changes) // count, 1)
    number = 0
    for states in (recording.prefixes(step), recording.states(rng, count)):
        for state in states:
            content = crashes.look(work, state)
            number += 1
            if number % 4 == 0:
                crashes.look_by_qemu(state, content)
                crashes.go_on(state, content)
    assert not problems(crashes.image.read_bytes(), closed=False)


def test_a_place_is_not_used_again_before_that_is_safe(tmp_path: Path, rng: random.Random) -> None:
    """A block is given up, and another one written: after a crash the first one may be back."""
    image, copy = tmp_path / "disk.vhdx", tmp_path / "crashed.vhdx"
    make(image, 2 * MIB)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * MIB)
    with Recording(image) as recording, tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.discard(0, length=MIB)
        disk.pwrite(MIB, b"b" * MIB)
        disk.sync()
        disk.discard(MIB, length=MIB)
        disk.pwrite(0, b"c" * MIB)
        disk.sync()
        disk.sync()
    firsts = {b"a" * MIB, bytes(MIB), b"c" * MIB}
    for state in (*recording.prefixes(), *recording.states(rng, 20 * THOROUGH)):
        state.write({image: copy})
        content = content_of(copy)
        assert content[:MIB] in firsts or set(content[:MIB]) <= {0, ord("c")}, str(state)
        assert set(content[MIB:]) <= {0, ord("b")}, str(state)


def _after_each(
    recording: Recording, rng: random.Random, image: Path, copy: Path, see: Callable[[State], None]
) -> None:
    step = max(len(recording.changes) // (8 * THOROUGH), 1)
    for state in (*recording.prefixes(step), *recording.states(rng, 6 * THOROUGH)):
        state.write({image: copy})
        see(state)


def test_a_crash_while_places_are_given_back(tmp_path: Path, rng: random.Random) -> None:
    """Blocks are moved, the table is changed, the file is cut: the content is always the same."""
    image, copy = tmp_path / "disk.vhdx", tmp_path / "crashed.vhdx"
    make(image, 12 * MIB)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        for at in rng.sample(range(12), 9):
            disk.pwrite(at * MIB, rng.randbytes(8 * KIB))
        for at in range(0, 12, 2):
            disk.discard(at * MIB, length=MIB)
    want, length = content_of(image), image.stat().st_size
    with Recording(image) as recording:
        check_image(f"vhdx:{image}", repair="leaks")
    assert image.stat().st_size < length

    def see(state: State) -> None:
        assert content_of(copy) == want, str(state)

    _after_each(recording, rng, image, copy, see)
    assert not problems(image.read_bytes(), closed=True)


def test_a_crash_while_blocks_get_places_of_their_own(tmp_path: Path, rng: random.Random) -> None:
    image, copy = tmp_path / "disk.vhdx", tmp_path / "crashed.vhdx"
    make(image, 4 * MIB)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(8 * KIB))
    for block in (2, 3):
        set_entry(image, block, 4 << 20 | 6)
    want = content_of(image)
    with Recording(image) as recording:
        result = check_image(f"vhdx:{image}", repair="all")
    assert (result.corruptions, result.corruptions_fixed) == (0, 2)

    def see(state: State) -> None:
        assert content_of(copy) == want, str(state)

    _after_each(recording, rng, image, copy, see)
    assert not problems(image.read_bytes(), closed=True)


@pytest.mark.parametrize(("old", "new"), [(MIB + 512, 4 * MIB), (4 * MIB, MIB + 512)])
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_a_crash_while_it_is_resized(
    old: int, new: int, kind: str, tmp_path: Path, rng: random.Random
) -> None:
    """It has the old size or the new one, and all content that lies in both."""
    image, copy = tmp_path / "disk.vhdx", tmp_path / "crashed.vhdx"
    make(image, old, subformat=kind)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        for at in range(0, old, MIB)[::-1]:
            disk.pwrite(at, rng.randbytes(min(MIB, old - at)))
    before = content_of(image)
    after = before[:new].ljust(new, b"\0")
    with Recording(image) as recording:
        resize_image(f"vhdx:{image}", str(new), shrink=True)
    seen = set()

    def see(state: State) -> None:
        found = content_of(copy)
        assert found in (before, after), str(state)
        seen.add(len(found))

    _after_each(recording, rng, image, copy, see)
    assert seen == {old, new}
    assert content_of(image) == after
    assert not problems(image.read_bytes(), closed=True)


def test_a_crash_while_the_log_is_replayed(tmp_path: Path, rng: random.Random) -> None:
    """It is replayed again, to the same."""
    image, dirty, copy = (tmp_path / f"{name}.vhdx" for name in ("disk", "dirty", "crashed"))
    make(image, 3 * MIB)
    with Recording(image) as recording, tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(2 * MIB))
        disk.sync()
    found = []
    for state in recording.prefixes():
        state.write({image: dirty})
        if any(header_of(dirty.read_bytes())[1][48:64]):
            found.append(state)
    for state in found[-2 * THOROUGH :]:
        state.write({image: dirty})
        want = content_of(dirty)
        with Recording(dirty) as replaying:
            tapcore.open(f"vhdx:{dirty}", readonly=False).close()
        for again in (*replaying.prefixes(2), *replaying.states(rng, 4 * THOROUGH)):
            again.write({dirty: copy})
            assert content_of(copy) == want, f"{state}, then {again}"
