"""A crash at any moment leaves at worst lost places, and everything that was flushed.

`TAPCORE_THOROUGH=10` looks at ten times as many states.
"""

import os
import random
import shutil
from pathlib import Path

import attrs
import pytest

import tapcore
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DIFFERENCING, DYNAMIC
from tap_vdi.parents import new_parent
from tapcore import DiskId
from tapcore.testkit import Recording, State, Workload
from tapcore.tools.check import check_image
from vditools import KIB, MIB, content_of, problems, qemu_content, run, set_entry, some_content

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@attrs.frozen
class Variant:
    """A kind of image, and what is done to it.

    Attributes:
        name: of the test.
        block_size: bytes.
        size: of the disk, bytes.
        parent: over a parent with content, shorter than the disk.
        metadata_cache: bytes; few make write-backs begin by themselves.
        largest: bytes of a request at most.
    """

    name: str
    block_size: int = MIB
    size: int = 3 * MIB - 512
    parent: bool = False
    metadata_cache: int | None = None
    largest: int = 64 * KIB


VARIANTS = [
    Variant("dynamic"),
    Variant("differencing", parent=True),
    Variant("small blocks", 8 * KIB, MIB),
    Variant("small blocks, few pages in memory, child", 512, 24 * MIB, True, 1024, 8 * KIB),
]


@attrs.define(slots=False)
class Crashes:
    """One image of a variant, and a folder for copies of it."""

    variant: Variant
    home: Path
    rng: random.Random
    below: bytes | None = None

    def __attrs_post_init__(self) -> None:
        variant, self.image = self.variant, self.home / "disk.vdi"
        self.copy = self.home / "crashed" / "disk.vdi"
        self.copy.parent.mkdir()
        kind = DIFFERENCING if variant.parent else DYNAMIC
        header = new_header(variant.size, variant.block_size, kind)
        if variant.parent:
            self.below = some_content(self.rng, variant.size // 2048 * 512 * 3)
            parent = self.home / "parent.vdi"
            tapcore.create_image(f"vdi:{parent}", len(self.below))
            with tapcore.open(f"vdi:{parent}", readonly=False) as disk:
                disk.pwrite(0, self.below)
            found = new_parent(str(self.home), DiskId("parent.vdi", "vdi"))
            header = attrs.evolve(header, parent=found.id, parent_modified=found.modified)
            shutil.copy2(parent, self.copy.parent)
        write_image(str(self.image), header)

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Where there is work: all of the disk, or of a larger one both ends."""
        size = self.variant.size
        return ((0, size),) if size < 4 * MIB else ((0, MIB), (size - MIB, MIB))

    def open(self, image: Path) -> tapcore.Disk:
        return tapcore.open(
            f"vdi:{image}", metadata_cache=self.variant.metadata_cache, readonly=False
        )

    def look(self, work: Workload, state: State) -> None:
        """The structures make sense, and the content is one that may be."""
        state.write({self.image: self.copy})
        wrong = problems(self.copy.read_bytes(), closed=False)
        assert not wrong, f"{state}: {wrong}"
        content = content_of(self.copy)
        for at, length in self.windows:
            text = work.wrong(state.moment, at, content[at : at + length])
            assert not text, f"{state}: {text}"

    def look_by_qemu(self, work: Workload, state: State) -> None:
        """QEMU reads the same, where it can."""
        if not self.variant.parent and self.variant.block_size == MIB:
            text = work.wrong(state.moment, 0, qemu_content(self.copy))
            assert not text, f"{state}, as QEMU reads it: {text}"

    def go_on(self, state: State) -> None:
        """It is written after the crash, and closed; then what was lost is given back."""
        rng = random.Random(state.moment)
        with self.open(self.copy) as disk:
            for _ in range(6):
                at = rng.randrange(disk.size // 512) * 512
                disk.pwrite(at, rng.randbytes(min(40 * KIB, disk.size - at)))
            want = disk.pread(0, length=disk.size)
        wrong = problems(self.copy.read_bytes(), closed=False)
        assert not wrong, f"{state}, gone on with: {wrong}"
        result = check_image(f"vdi:{self.copy}", repair="leaks")
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
        assert not problems(self.copy.read_bytes(), closed=True)
        assert content_of(self.copy) == want


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_crash_at_any_moment(variant: Variant, tmp_path: Path, rng: random.Random) -> None:
    crashes = Crashes(variant, tmp_path, rng)
    windows = crashes.windows
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


def test_a_crash_while_places_are_given_back(tmp_path: Path, rng: random.Random) -> None:
    """Blocks are moved, the map is changed, the file is cut: the content is always the same."""
    image, copy = tmp_path / "disk.vdi", tmp_path / "crashed.vdi"
    tapcore.create_image(f"vdi:{image}", MIB, options={"block_size": "4K"})
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(MIB))
        for at in rng.sample(range(0, MIB, 4 * KIB), 60):
            disk.discard(at, length=4 * KIB)
    want, length = content_of(image), image.stat().st_size
    with Recording(image) as recording:
        result = check_image(f"vdi:{image}", repair="leaks")
    assert result.messages == ["60 blocks of zeroes were dropped"]
    assert image.stat().st_size == length - 60 * 4 * KIB
    for state in (*recording.prefixes(), *recording.states(rng, 20 * THOROUGH)):
        state.write({image: copy})
        assert content_of(copy) == want, str(state)
        assert not problems(copy.read_bytes(), closed=False), str(state)
    assert not problems(image.read_bytes(), closed=True)


def test_a_crash_while_blocks_get_places_of_their_own(tmp_path: Path, rng: random.Random) -> None:
    image, copy = tmp_path / "disk.vdi", tmp_path / "crashed.vdi"
    tapcore.create_image(f"vdi:{image}", MIB, options={"block_size": "16K"})
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(20 * 16 * KIB))
    for block in (7, 12, 40):
        set_entry(image, block, 3)
    want = content_of(image)
    with Recording(image) as recording:
        result = check_image(f"vdi:{image}", repair="all")
    assert (result.corruptions, result.corruptions_fixed) == (0, 3)
    for state in (*recording.prefixes(), *recording.states(rng, 20 * THOROUGH)):
        state.write({image: copy})
        assert content_of(copy) == want, str(state)
    assert not problems(image.read_bytes(), closed=True)


def test_nothing_is_left_to_complain_about_for_qemu(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    tapcore.create_image(f"vdi:{image}", 20 * MIB)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(9 * MIB))
        disk.discard(2 * MIB, length=5 * MIB)
        disk.pwrite(15 * MIB, b"more")
        disk.sync()
    run("qemu-img", "check", "-f", "vdi", image)
    occupied = image.stat().st_blocks * 512
    assert occupied < 6 * MIB
    want = content_of(image)
    check_image(f"vdi:{image}", repair="leaks")
    assert image.stat().st_size == 2 * MIB + 5 * MIB
    run("qemu-img", "check", "-f", "vdi", image)
    assert qemu_content(image) == want
