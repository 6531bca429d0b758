"""A crash at any moment leaves at worst unused space, and everything that was flushed.

Random work is recorded write by write; then the image is looked at as after a crash: after every
few writes in their order, and with anything lost, or torn, that no fdatasync had covered.

`TAPCORE_THOROUGH=10` looks at ten times as many states.
"""

import os
import random
import shutil
import time
from pathlib import Path

import attrs
import pytest

import tapcore
from qcowtools import KIB, MIB, PASSPHRASE, qemu_content, some_content, walk
from tap_qcow import layout, qcow_create
from tap_qcow.create import l1_end, new_header, write_image
from tap_qcow.header import HEADER, Header
from tapcore import CacheMode, DiskId
from tapcore.testkit import Recording, State, Workload

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@attrs.frozen
class Variant:
    """A kind of image, and what is done to it.

    Attributes:
        name: of the test.
        geometry: (cluster_bits, l2_bits); None: as images are made.
        size: of the disk, bytes; all of it is worked on.
        parent: over a raw parent with content, shorter than the disk.
        compressed: begins with compressed clusters.
        encrypted: with `PASSPHRASE`.
        xen: with blktap's extension.
        metadata_cache: bytes; few make write-backs begin by themselves.
        cache: mode.
        late: nothing is written at once; flushes overtake writes.
        largest: bytes of a request at most.
        batches: of requests.
        states: that are looked at.
    """

    name: str
    geometry: tuple[int, int] | None = None
    size: int = 3 * MIB
    parent: bool = False
    compressed: bool = False
    encrypted: bool = False
    xen: bool = False
    metadata_cache: int | None = None
    cache: CacheMode = "writeback"
    late: bool = False
    largest: int = 64 * KIB
    batches: int = 30
    states: int = 18


VARIANTS = [
    Variant("as made"),
    Variant("child", parent=True),
    Variant("small tables", (9, 6), 2 * MIB),
    Variant("few tables in memory", (9, 6), 2 * MIB, metadata_cache=2048),
    Variant("few tables in memory, child", (12, 6), parent=True, metadata_cache=1024),
    Variant("64 KiB clusters, child", (16, 6), 5 * MIB, parent=True, largest=256 * KIB),
    Variant("over compressed clusters", (14, 6), compressed=True),
    Variant("over compressed clusters, child", parent=True, compressed=True),
    Variant("encrypted", encrypted=True),
    Variant("encrypted child", (12, 6), parent=True, encrypted=True),
    Variant("made by blktap", xen=True),
    Variant("past the page cache", (13, 6), cache="none"),
    Variant("nothing at once", (11, 6), parent=True, late=True),
]


@attrs.define(slots=False)
class Crashes:
    """One image of a variant, and a folder for copies of it."""

    variant: Variant
    home: Path
    rng: random.Random
    below: bytes | None = None

    def __attrs_post_init__(self) -> None:
        variant, self.image = self.variant, self.home / "disk.qcow"
        self.crashed = self.home / "crashed"
        self.crashed.mkdir()
        self.copy = self.crashed / "disk.qcow"
        if variant.parent:
            self.below = some_content(self.rng, variant.size * 3 // 4)
            (self.home / "parent.raw").write_bytes(self.below)
            shutil.copy(self.home / "parent.raw", self.crashed)
        if variant.xen:
            qcow_create(str(self.image), variant.size, None, 1)
        else:
            self._make()
        if variant.compressed:
            with self.open(self.image) as disk:
                for at in range(0, variant.size, 128 * KIB):
                    disk.write_compressed(at, some_content(self.rng, 64 * KIB))

    def _make(self) -> None:
        variant = self.variant
        name = "parent.raw" if variant.parent else ""
        method = layout.CRYPT_AES if variant.encrypted else layout.CRYPT_NONE
        header = new_header(variant.size, name, method)
        if variant.geometry is not None:
            geometry = layout.Geometry(*variant.geometry)
            header = Header(geometry, variant.size, 512, name, HEADER.size, 0, method)
        write_image(str(self.image), header, l1_end(header))

    def open(
        self, image: Path, *, readonly: bool = False, cache: CacheMode = "writeback"
    ) -> tapcore.Disk:
        variant = self.variant
        return tapcore.open(
            f"qcow:{image}",
            readonly=readonly,
            keys=PASSPHRASE if variant.encrypted else None,
            metadata_cache=variant.metadata_cache,
            cache=cache,
        )

    def restore(self, state: State) -> bytes:
        """The image after a crash, in the folder for that; its bytes."""
        state.write({self.image: self.copy})
        return bytes(state.contents[os.path.realpath(self.image)])

    def look(self, work: Workload, state: State) -> None:
        """The tables make sense, and the content is one that may be."""
        problems = walk(self.restore(state)).problems
        assert not problems, f"{state}: {problems[:5]}"
        with self.open(self.copy, readonly=True) as disk:
            wrong = work.wrong(state.moment, 0, disk.pread(0, length=disk.size))
        assert not wrong, f"{state}: {wrong}"

    def look_by_qemu(self, work: Workload, state: State) -> None:
        """QEMU reads the same."""
        content = qemu_content(self.copy, encrypted=self.variant.encrypted)
        wrong = work.wrong(state.moment, 0, content)
        assert not wrong, f"{state}, as QEMU reads it: {wrong}"

    def go_on(self, state: State) -> None:
        """It is written after the crash, and closed."""
        rng = random.Random(state.moment)
        with self.open(self.copy) as disk:
            for _ in range(10):
                at = rng.randrange(disk.size // 512) * 512
                disk.pwrite(at, rng.randbytes(min(40 * KIB, disk.size - at)))
            want = disk.pread(0, length=disk.size)
        problems = walk(self.copy.read_bytes()).problems
        assert not problems, f"{state}, gone on with: {problems[:5]}"
        with self.open(self.copy, readonly=True) as disk:
            assert disk.pread(0, length=disk.size) == want


def make_writes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes overtake them."""
    original = tapcore.ImageFile.write_blocking
    rng = random.Random(0)  # threads use it: not the one that decides what is done

    def write(file: tapcore.ImageFile, offset: int, buf: memoryview) -> int:
        time.sleep(rng.choice((0, 0, 0.004)))
        return original(file, offset, buf)

    monkeypatch.setattr(tapcore.ImageFile, "write_now", lambda *_: None)
    monkeypatch.setattr(tapcore.ImageFile, "write_blocking", write)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_crash_at_any_moment(
    variant: Variant, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variant.late:
        make_writes_late(monkeypatch)
    crashes = Crashes(variant, tmp_path, rng)
    windows = ((0, variant.size),)
    with (
        Recording(crashes.image) as recording,
        crashes.open(crashes.image, cache=variant.cache) as disk,
    ):
        work = Workload(disk, recording, rng, windows, crashes.below, variant.largest)
        work.run(variant.batches)
    assert len(recording.barriers) > 5
    count = variant.states * THOROUGH
    step = max(len(recording.changes) // count, 1)
    slow = max(count // 3, 1)
    number = 0
    for states in (recording.prefixes(step), recording.states(rng, count)):
        for state in states:
            crashes.look(work, state)
            number += 1
            if number % slow == 0:
                crashes.look_by_qemu(work, state)
                crashes.go_on(state)
    last = State(recording.now(), {path: Path(path).read_bytes() for path in recording.before})
    crashes.look(work, last)
    crashes.look_by_qemu(work, last)


def test_a_crash_while_compressed_clusters_are_written(tmp_path: Path, rng: random.Random) -> None:
    """Each cluster is as before, or all there; and there, if that was before a flush."""
    size = 2 * MIB
    crashes = Crashes(Variant("compressed", size=size), tmp_path, rng)
    content = some_content(rng, size)
    safe = {}
    with Recording(crashes.image) as recording, crashes.open(crashes.image) as disk:
        for at in range(0, size, 64 * KIB):
            disk.write_compressed(at, content[at : at + 64 * KIB])
            if rng.random() < 0.3:
                disk.sync()
                safe[recording.now()] = at + 64 * KIB
    for state in recording.states(rng, 36 * THOROUGH):
        assert not walk(crashes.restore(state)).problems, str(state)
        until = max((end for moment, end in safe.items() if moment <= state.moment), default=0)
        with crashes.open(crashes.copy, readonly=True) as disk:
            got = disk.pread(0, length=size)
        assert got[:until] == content[:until], str(state)
        for at in range(until, size, 4 * KIB):
            piece = got[at : at + 4 * KIB]
            assert piece in (content[at : at + 4 * KIB], bytes(4 * KIB)), f"{state}: at {at}"


@pytest.mark.parametrize("what", ["rebase", "empty", "grow a little", "grow much"])
def test_a_crash_while_the_image_itself_is_changed(
    what: str, tmp_path: Path, rng: random.Random
) -> None:
    """It is as it was, or as it was to be; an emptied child may have forgotten a part."""
    size = 3 * MIB - 1536
    crashes = Crashes(Variant("child", (12, 6), size=size, parent=True), tmp_path, rng)
    other = "a-much-longer-name-of-the-same-parent.raw"
    for folder in (crashes.home, crashes.crashed):
        shutil.copy(folder / "parent.raw", folder / other)
    content = bytearray(crashes.below or b"").ljust(size, b"\0")
    with crashes.open(crashes.image) as disk:
        for _ in range(20):
            at = rng.randrange(size - 9000)
            content[at : at + 9000] = rng.randbytes(9000)
            disk.pwrite(at, content[at : at + 9000])
        disk.pwrite(size - 700, b"e" * 700)
        content[-700:] = b"e" * 700
    new_size = {"grow a little": size + 1024, "grow much": size + 40 * MIB}.get(what, size)
    with Recording(crashes.image) as recording, crashes.open(crashes.image) as disk:
        leaf = disk.state.disks
        if what == "rebase":
            leaf.drv.td_set_parent(leaf, DiskId(other))
        elif what == "empty":
            leaf.drv.td_make_empty(leaf)
        else:
            disk.resize(new_size)
    below = bytes(crashes.below or b"").ljust(size, b"\0")
    for state in (*recording.prefixes(), *recording.states(rng, 18 * THOROUGH)):
        assert not walk(crashes.restore(state)).problems, str(state)
        with crashes.open(crashes.copy, readonly=True) as disk:
            assert disk.size in (size, new_size), str(state)
            got = disk.pread(0, length=size)
            assert not any(disk.pread(size, length=disk.size)), str(state)
        for at in range(0, size, 512):
            allowed = {bytes(content[at : at + 512])}
            if what == "empty":
                allowed.add(below[at : at + 512])
            assert got[at : at + 512] in allowed, f"{state}: sector {at // 512}"
