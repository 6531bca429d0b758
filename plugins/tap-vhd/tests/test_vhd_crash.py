"""A crash at any moment leaves at worst unused space, and everything that was flushed.

`TAPCORE_THOROUGH=10` looks at ten times as many states.
"""

import os
import random
import shutil
from pathlib import Path

import attrs
import pytest

import tapcore
from tap_vhd.footer import DIFFERENCING, FIXED, NO_OFFSET, unpack_footer
from tapcore.testkit import Recording, State, Workload
from vhdtools import KIB, MIB, content_of, make, problems, qemu_content, some_content

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@attrs.frozen
class Variant:
    """A kind of image, and what is done to it.

    Attributes:
        name: of the test.
        block_size: bytes.
        size: of the disk, bytes.
        parent: over a fixed parent with content, shorter than the disk.
        metadata_cache: bytes; few make write-backs begin by themselves.
        largest: bytes of a request at most.
    """

    name: str
    block_size: int = 512 * KIB
    size: int = 3 * MIB - 512
    parent: bool = False
    metadata_cache: int | None = None
    largest: int = 64 * KIB


VARIANTS = [
    Variant("dynamic"),
    Variant("differencing", parent=True),
    Variant("small blocks", 8 * KIB, MIB),
    Variant("small blocks, few bitmaps in memory, child", 16 * KIB, MIB, True, 1024),
]


@attrs.define(slots=False)
class Crashes:
    """One image of a variant, and a folder for copies of it."""

    variant: Variant
    home: Path
    rng: random.Random
    below: bytes | None = None

    def __attrs_post_init__(self) -> None:
        variant, self.image = self.variant, self.home / "disk.vhd"
        self.copy = self.home / "crashed" / "disk.vhd"
        self.copy.parent.mkdir()
        if variant.parent:
            self.below = some_content(self.rng, variant.size // 2048 * 512 * 3)
            parent = self.home / "parent.vhd"
            options = {"subformat": "fixed"}
            tapcore.create_image(f"vhd:{parent}", len(self.below), options=options)
            with tapcore.open(f"vhd:{parent}", readonly=False) as disk:
                disk.pwrite(0, self.below)
        name = "parent.vhd" if variant.parent else ""
        make(self.image, variant.size, variant.block_size, name)
        if variant.parent:
            shutil.copy2(self.home / "parent.vhd", self.copy.parent)

    def open(self, image: Path) -> tapcore.Disk:
        return tapcore.open(
            f"vhd:{image}", metadata_cache=self.variant.metadata_cache, readonly=False
        )

    def look(self, work: Workload, state: State) -> None:
        """The structures make sense, and the content is one that may be."""
        state.write({self.image: self.copy})
        wrong = problems(self.copy.read_bytes(), closed=False)
        assert not wrong, f"{state}: {wrong}"
        text = work.wrong(state.moment, 0, content_of(self.copy))
        assert not text, f"{state}: {text}"

    def look_by_qemu(self, work: Workload, state: State) -> None:
        """QEMU reads the same, where it can."""
        if not self.variant.parent:
            text = work.wrong(state.moment, 0, qemu_content(self.copy))
            assert not text, f"{state}, as QEMU reads it: {text}"

    def go_on(self, state: State) -> None:
        """It is written after the crash, and closed."""
        rng = random.Random(state.moment)
        with self.open(self.copy) as disk:
            for _ in range(6):
                at = rng.randrange(disk.size // 512) * 512
                disk.pwrite(at, rng.randbytes(min(40 * KIB, disk.size - at)))
            want = disk.pread(0, length=disk.size)
        wrong = problems(self.copy.read_bytes(), closed=True)
        assert not wrong, f"{state}, gone on with: {wrong}"
        assert content_of(self.copy) == want


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_crash_at_any_moment(variant: Variant, tmp_path: Path, rng: random.Random) -> None:
    crashes = Crashes(variant, tmp_path, rng)
    windows = ((0, variant.size),)
    with Recording(crashes.image) as recording, crashes.open(crashes.image) as disk:
        work = Workload(disk, recording, rng, windows, crashes.below, variant.largest)
        work.run(12)
    assert len(recording.barriers) > 3
    count = 9 * THOROUGH
    step = max(len(recording.changes) // count, 1)
    number = 0
    for states in (recording.prefixes(step), recording.states(rng, count)):
        for state in states:
            crashes.look(work, state)
            number += 1
            if number % max(count // 2, 1) == 0:
                crashes.look_by_qemu(work, state)
                crashes.go_on(state)
    assert not problems(crashes.image.read_bytes(), closed=True)


def test_no_footer_of_the_guests_is_ever_believed(tmp_path: Path, rng: random.Random) -> None:
    """Content that looks like the footer of a fixed image would show the whole file as a disk, and
    one of another image would name any parent."""
    image, copy = tmp_path / "disk.vhd", tmp_path / "crashed.vhd"
    make(image, MIB, 16 * KIB)
    mine = unpack_footer(image.read_bytes()[:512])
    fixed = attrs.evolve(mine, disk_type=FIXED, data_offset=NO_OFFSET, unique_id=bytes(16)).pack()
    child = attrs.evolve(mine, disk_type=DIFFERENCING, data_offset=64 * KIB).pack()
    with Recording(image) as recording, tapcore.open(f"vhd:{image}", readonly=False) as disk:
        for at in rng.sample(range(0, MIB, 16 * KIB), 20):
            disk.pwrite(at, rng.choice((fixed, child)) * 32)
            if rng.random() < 0.3:
                disk.sync()
    for state in (*recording.prefixes(), *recording.states(rng, 40 * THOROUGH)):
        state.write({image: copy})
        with tapcore.open(f"vhd:{copy}", readonly=True) as disk:
            assert disk.info()["type"] == "dynamic", str(state)
            assert disk.size == MIB, str(state)
