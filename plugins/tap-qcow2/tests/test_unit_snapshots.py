"""Internal snapshots: made, applied and deleted by tapcore and by QEMU in turn."""

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import tapcore
from qcow2tools import (
    MIB,
    assert_clean,
    content_by_qemu,
    create,
    qemu_img,
    qemu_io,
    run,
    source_content,
)
from qcow2wrecks import commands
from tap_qcow2.image import Image
from tap_qcow2.ondisk.snapshottable import read_snapshots
from tap_qcow2.snapshots.operations import apply_snapshot, create_snapshot, delete_snapshot

SIZE = 2 * MIB

OURS: dict[str, Callable[[Image, str], object]] = {
    "create": create_snapshot,
    "apply": apply_snapshot,
    "delete": delete_snapshot,
}


@contextmanager
def opened(image: Path) -> Iterator[tuple[tapcore.Disk, Image]]:
    """The disk, and the driver's image below it."""
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        dd = disk._state.disks
        yield disk, dd.private


def content(image: Path, snapshot: str = "") -> bytes:
    """As tapcore reads it, from the beginning."""
    with tapcore.open(f"qcow2:{image}", readonly=True, snapshot=snapshot) as disk:
        return disk.pread(0, length=disk.size)


def write_some(disk: tapcore.Disk, rng: random.Random, count: int = 6) -> None:
    """Data, zeroes and holes of every size."""
    for _ in range(count):
        at = rng.randrange(disk.size // 512 - 300) * 512
        length = rng.choice((512, 4096, 30_208, 100_352))
        what = rng.randrange(4)
        if what == 0:
            disk.zero(at, length=length)
        elif what == 1:
            disk.discard(at, length=length)
        else:
            disk.pwrite(at, rng.randbytes(length))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"cluster_size": 512},
    {"cluster_size": 4096, "compat": "0.10"},
    {"cluster_size": 2 * MIB},
    *[{"refcount_bits": bits, "cluster_size": 4096} for bits in (4, 8, 32, 64)],
    {"extended_l2": "on", "cluster_size": 16384},
    {"lazy_refcounts": "on", "cluster_size": 8192},
]


@pytest.mark.parametrize(
    "options", VARIANTS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "default"
)
def test_both_sides_in_turn(options: dict[str, Any], tmp_path: Path, rng: random.Random) -> None:
    """Each step is checked by QEMU, and each snapshot reads as it was made, on both sides."""
    image = create(tmp_path / "disk.qcow2", SIZE, **options)
    qemu_io(image, *commands(rng, SIZE, 8))
    kept: dict[str, bytes] = {}
    for step in range(10):
        ours = step % 2 == 0
        what = rng.choice(("create", "create", "apply", "delete")) if kept else "create"
        name = f"n{step}" if what == "create" else rng.choice(sorted(kept))
        if ours:
            with opened(image) as (disk, it):
                before = disk.pread(0, length=SIZE)
                OURS[what](it, name)
                now = disk.pread(0, length=SIZE)
                assert now == (kept[name] if what == "apply" else before)
                write_some(disk, rng)
                after = disk.pread(0, length=SIZE)
        else:
            before = content(image)
            qemu_img("snapshot", f"-{what[0]}", name, image)
            now = content(image)
            qemu_io(image, *commands(rng, SIZE, 4))
            after = content(image)
        if what == "create":
            kept[name] = before
        elif what == "delete":
            del kept[name]
        assert_clean(image)
        assert content(image) == content_by_qemu(image) == after
        for each, want in kept.items():
            assert content(image, each) == want
    for each, want in kept.items():
        assert content_by_qemu(image, snapshot=each) == want


def test_compressed_clusters_are_shared(tmp_path: Path, rng: random.Random) -> None:
    """Several lie in one host cluster, which is counted for each."""
    raw = tmp_path / "source.raw"
    raw.write_bytes(source_content(rng, SIZE))
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-ocluster_size=8192", raw, image)
    want = raw.read_bytes()
    with opened(image) as (disk, it):
        create_snapshot(it, "one")
        write_some(disk, rng, 12)
        create_snapshot(it, "two")
        write_some(disk, rng, 12)
    assert_clean(image)
    assert content(image, "one") == content_by_qemu(image, snapshot="one") == want
    with opened(image) as (disk, it):
        delete_snapshot(it, "two")
        apply_snapshot(it, "one")
        assert disk.pread(0, length=SIZE) == want
        delete_snapshot(it, "one")
        write_some(disk, rng)
    assert_clean(image)


def test_ids_are_numbers_that_are_not_used_again_while_larger_ones_exist(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with opened(image) as (_, it):
        assert [create_snapshot(it, name).id for name in ("a", "b", "c")] == ["1", "2", "3"]
        delete_snapshot(it, "b")
        assert create_snapshot(it, "d").id == "4"
        delete_snapshot(it, "4")
        made = create_snapshot(it, "d")
    assert made.id == "4"
    assert made.disk_size == MIB
    said = qemu_img("snapshot", "-l", image)
    assert [line.split()[:2] for line in said.splitlines()[2:]] == [
        ["1", "a"],
        ["3", "c"],
        ["4", "d"],
    ]
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.snapshots()[-1] == made


def test_an_id_goes_before_a_name_and_a_name_may_be_there_twice(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with opened(image) as (disk, it):
        disk.pwrite(0, b"1" * 512)
        create_snapshot(it, "2")
        disk.pwrite(0, b"2" * 512)
        create_snapshot(it, "twice")
        disk.pwrite(0, b"3" * 512)
        create_snapshot(it, "twice")
        apply_snapshot(it, "2")
        assert disk.pread(0, length=512) == b"2" * 512
        delete_snapshot(it, "twice")
        assert [each.id for each in read_snapshots(it.file, it.header)] == ["1", "3"]
        with pytest.raises(tapcore.ImageFormatError, match=r"no snapshot 'none'.*there are: 2"):
            apply_snapshot(it, "none")
    assert_clean(image)


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128])
def test_names_that_qemu_could_not_keep_are_refused(name: str, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with opened(image) as (_, it), pytest.raises(tapcore.UsageError, match="255"):
        create_snapshot(it, name)


def test_a_snapshot_of_another_size_brings_its_size(tmp_path: Path, rng: random.Random) -> None:
    """Larger and smaller, with an L1 table of another length; then life goes on."""
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=512)
    with opened(image) as (disk, it):
        write_some(disk, rng)
        small = disk.pread(0, length=SIZE)
        create_snapshot(it, "small")
    qemu_img("resize", image, 3 * SIZE)
    with opened(image) as (disk, it):
        disk.pwrite(3 * SIZE - 5000, rng.randbytes(5000))
        large = disk.pread(0, length=3 * SIZE)
        create_snapshot(it, "large")
        apply_snapshot(it, "small")
        assert it.size == it.header.size == SIZE
        assert it.dd.size == SIZE >> 9
    assert content(image) == content_by_qemu(image) == small
    assert_clean(image)
    with opened(image) as (disk, it):
        apply_snapshot(it, "large")
    assert content(image) == content_by_qemu(image) == large
    assert_clean(image)
    qemu_img("snapshot", "-a", "small", image)
    assert content(image) == small
    with opened(image) as (disk, it):
        delete_snapshot(it, "large")
        write_some(disk, rng)
    assert_clean(image)


def test_vm_state_is_kept(tmp_path: Path, rng: random.Random) -> None:
    """Its size and clock stay in the table through all that is done to the others, and its data."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    qemu_img("snapshot", "-c", "vm", image)
    with opened(image) as (disk, it):
        write_some(disk, rng)
        entries = read_snapshots(it.file, it.header)
        entries[0].vm_state_size, entries[0].vm_clock_nsec = 5 << 32, 12345
        entries[0].icount = 77
        entries[0].extra_tail = b"something unknown"
        from tap_qcow2.snapshots.transaction import rewrite_snapshots

        rewrite_snapshots(it, entries)
        create_snapshot(it, "other")
        apply_snapshot(it, "other")
        delete_snapshot(it, "other")
        create_snapshot(it, "third")
        kept = read_snapshots(it.file, it.header)[0]
    assert (kept.vm_state_size, kept.vm_clock_nsec, kept.icount) == (5 << 32, 12345, 77)
    assert kept.extra_tail == b"something unknown"
    assert_clean(image)
    assert "20 GiB" in qemu_img("snapshot", "-l", image)


def test_a_refcount_that_cannot_count_further_refuses_and_changes_nothing(
    tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, refcount_bits=1, cluster_size=4096)
    with opened(image) as (disk, it):
        write_some(disk, rng)
        disk.pwrite(0, b"y" * 512)  # a cluster at least
        want = disk.pread(0, length=MIB)
        with pytest.raises(tapcore.NotSupportedError, match="refcount_bits"):
            create_snapshot(it, "one")
        assert disk.pread(0, length=MIB) == want
        disk.pwrite(0, b"x" * 512)
    assert_clean(image)
    assert content(image)[512:] == want[512:]
    image = create(tmp_path / "two.qcow2", MIB, refcount_bits=2, cluster_size=4096)
    with opened(image) as (disk, it):
        write_some(disk, rng)
        disk.pwrite(0, b"y" * 512)
        create_snapshot(it, "one")
        create_snapshot(it, "two")
        before = image.read_bytes()
        with pytest.raises(tapcore.NotSupportedError, match="refcount_bits"):
            create_snapshot(it, "three")
        assert [each.name for each in read_snapshots(it.file, it.header)] == ["one", "two"]
        assert image.read_bytes() == before
        write_some(disk, rng)
    assert_clean(image)


def test_an_external_data_file_has_no_snapshots(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, data_file="disk.data")
    with opened(image) as (_, it), pytest.raises(tapcore.NotSupportedError, match="data file"):
        create_snapshot(it, "one")


def test_bitmaps_are_kept_and_call_all_changed_after_apply(
    tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with opened(image) as (disk, it):
        write_some(disk, rng)
        create_snapshot(it, "one")
    qemu_img("bitmap", "--add", image, "bits")
    with opened(image) as (disk, it):
        create_snapshot(it, "two")
        apply_snapshot(it, "one")
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert list(disk.bitmap_ranges("bits")) == [(0, MIB)]
    assert_clean(image)


def test_bitmaps_call_all_changed_where_applying_is_the_first_change(
    tmp_path: Path, rng: random.Random
) -> None:
    """Nothing has marked them as in use before, and so nothing would be recorded."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with opened(image) as (disk, it):
        write_some(disk, rng)
        create_snapshot(it, "one")
    qemu_img("bitmap", "--add", image, "bits")
    with opened(image) as (disk, it):
        apply_snapshot(it, "one")
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert list(disk.bitmap_ranges("bits")) == [(0, MIB)]
    assert_clean(image)


def test_space_is_given_back(tmp_path: Path, rng: random.Random) -> None:
    image = create(tmp_path / "disk.qcow2", 16 * MIB)
    with opened(image) as (disk, it):
        create_snapshot(it, "empty")
        disk.pwrite(0, rng.randbytes(16 * MIB))
        disk.flush()
        full = image.stat().st_blocks
        apply_snapshot(it, "empty")
        assert image.stat().st_blocks < full / 4
        disk.pwrite(0, rng.randbytes(8 * MIB))
    assert image.stat().st_size < 20 * MIB, "what was given back is not used again"
    assert_clean(image)


def test_a_damaged_table_is_told_before_anything_changes(
    tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with opened(image) as (disk, it):
        write_some(disk, rng)
        create_snapshot(it, "one")
        place = read_snapshots(it.file, it.header)[0].l1_offset
    with open(image, "r+b") as file:
        file.seek(place)
        file.write((1 << 40).to_bytes(8, "big"))
    before = image.read_bytes()
    with opened(image) as (_, it):
        for operation in (apply_snapshot, delete_snapshot):
            with pytest.raises(tapcore.ImageFormatError, match="L1 entry"):
                operation(it, "one")
    assert image.read_bytes() == before


def test_a_failing_write_leaves_an_image_that_is_repaired_when_it_is_opened(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write or flush fails: at worst the snapshot is not made, or not applied."""
    operations: list[Callable[[Image], object]] = [
        lambda it: create_snapshot(it, "two"),
        lambda it: apply_snapshot(it, "one"),
        lambda it: delete_snapshot(it, "one"),
    ]
    for operation in operations:
        for number in range(2, 40, 5):
            image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
            with opened(image) as (disk, it):
                write_some(disk, rng)
                create_snapshot(it, "one")
                first = disk.pread(0, length=MIB)
                write_some(disk, rng)
                second = disk.pread(0, length=MIB)
            with (
                suppress(OSError, tapcore.TapError),
                opened(image) as (_, it),
                monkeypatch.context() as patch,
            ):
                failing(patch, it, number)
                operation(it)
            with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
                assert disk.pread(0, length=MIB) in (first, second)
                disk.pwrite(0, b"y" * 512)
            assert not run("qemu-img", "check", "-q", "-f", "qcow2", image)
            image.unlink()


def failing(patch: pytest.MonkeyPatch, image: Image, number: int) -> None:
    """Let the n-th write to the image file, and all flushes and writes after it, fail."""
    file = type(image.file)
    write, left = file.write_metadata, [number]

    def write_metadata(self: tapcore.ImageFile, offset: int, data: bytes) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.EIO, "broken")
        write(self, offset, data)

    patch.setattr(file, "write_metadata", write_metadata)
