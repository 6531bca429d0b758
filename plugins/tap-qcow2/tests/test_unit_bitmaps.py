"""Persistent bitmaps: read and kept up as QEMU does it."""

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from qcow2bitmaps import (
    IN_USE,
    Entries,
    add,
    assert_same,
    dirty,
    dirty_by_qemu,
    flags_by_qemu,
    listed,
    structures,
)

import tapcore
from qcow2tools import MIB, assert_clean, create, qemu_img, qemu_io
from tap_qcow2.bitmaps.bits import cut, fill, set_runs

# ---- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 * MIB])
@pytest.mark.parametrize("granularity", [512, 65536])
def test_bits_that_qemu_wrote_are_read(
    granularity: int, cluster_size: int, tmp_path: Path, rng: random.Random
) -> None:
    size = 9 * MIB + 512 * rng.randrange(200)
    image = create(tmp_path / "disk.qcow2", size, cluster_size=cluster_size)
    add(image, "one", granularity)
    writes = []
    for _ in range(25):
        at = rng.randrange(size // 512) * 512
        writes.append(f"write -q {at} {min(rng.choice((512, 5120, 300_032)), size - at)}")
    qemu_io(image, *writes)
    assert_same(image, "one")
    assert listed(image)["one"] == tapcore.Bitmap("one", granularity, enabled=True)


def test_a_merged_bitmap_and_one_of_all_the_disk_are_read(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 40 * MIB, cluster_size=4096)
    add(image, "one")
    qemu_io(image, "write -q 1M 1M")
    add(image, "two", 512)
    qemu_io(image, "write -q 8M 512", "write -z -q 20M 3M")
    add(image, "all", 512)
    qemu_io(image, "write -z -q 0 40M")
    add(image, "sum", 4096, "--disable")
    qemu_img("bitmap", "--disable", image, "two")
    qemu_img("bitmap", "--merge", "one", "--merge", "two", image, "sum")
    assert_same(image, "one", "two", "all", "sum")
    assert dirty(image, "all") == [(0, 40 * MIB)]
    assert not listed(image)["sum"].enabled


def test_a_bitmap_that_does_not_exist(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with pytest.raises(tapcore.UsageError, match="has no bitmap 'one'"):
        dirty(image, "one")
    add(image, "one")
    with pytest.raises(tapcore.UsageError, match="has no bitmap 'two'"):
        dirty(image, "two")


# ---- recording ---------------------------------------------------------------------------------


def _both(image: Path, twin: Path, size: int, rng: random.Random) -> None:
    """The same work, by us on one image and by QEMU on the other."""
    commands = []
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        for _ in range(20):
            at = rng.randrange(size // 512) * 512
            length = min(rng.choice((512, 4096, 70_144, 2 * MIB)), size - at)
            what = rng.choice(("write", "zero", "discard"))
            if what == "write":
                disk.pwrite(at, b"\x5a" * length)
                commands.append(f"write -q -P 0x5a {at} {length}")
            elif what == "zero":
                disk.zero(at, length=length)
                commands.append(f"write -q -z -u {at} {length}")
            else:
                disk.discard(at, length=length)
                commands.append(f"discard -q {at} {length}")
    qemu_io(twin, *commands)


@pytest.mark.parametrize(
    "options",
    [{}, {"cluster_size": 512}, {"extended_l2": "on"}, {"lazy_refcounts": "on"}, {"data_file": ""}],
    ids=lambda options: ",".join(options) or "default",
)
def test_what_is_written_here_is_recorded_as_by_qemu(
    options: dict[str, Any], tmp_path: Path, rng: random.Random
) -> None:
    size = (3 if options.get("cluster_size") == 512 else 33) * MIB + 512
    images = []
    for name in ("ours", "theirs"):
        given = options | (
            {"data_file": tmp_path / f"{name}.data"} if "data_file" in options else {}
        )
        image = create(tmp_path / f"{name}.qcow2", size, **given)
        add(image, "fine", 512)
        add(image, "coarse", 4 * MIB)
        add(image, "off", 65536, "--disable")
        images.append(image)
    image, twin = images
    for _ in range(2):
        _both(image, twin, size, rng)
        for name in ("fine", "coarse", "off"):
            assert dirty(image, name) == dirty_by_qemu(image, name) == dirty_by_qemu(twin, name)
        assert flags_by_qemu(image) == flags_by_qemu(twin)
        assert_clean(image)


def test_both_record_alternately(tmp_path: Path, rng: random.Random) -> None:
    """With everything that `qemu-img bitmap` does between."""
    size = 5 * MIB
    image = create(tmp_path / "disk.qcow2", size, cluster_size=4096)
    for name in ("a", "b"):
        add(image, name, rng.choice((512, 4096, 65536)))
    for _ in range(6):
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            for _ in range(5):
                at = rng.randrange(size - 9000)
                disk.pwrite(at, rng.randbytes(9000))
        at = rng.randrange(size // 4096 - 1) * 4096
        qemu_io(image, f"write -q {at} 4096")
        verb, name = rng.choice(("--clear", "--disable", "--enable")), rng.choice("ab")
        qemu_img("bitmap", verb, image, name)
        assert_same(image, "a", "b")
        assert_clean(image)


def test_bits_are_to_be_seen_while_it_is_open(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    qemu_io(image, "write -q 64k 64k")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        assert flags_by_qemu_anyway(image) == {"one": {"auto"}}, "nothing has changed yet"
        disk.pwrite(MIB, b"x")
        assert flags_by_qemu_anyway(image) == {"one": {"auto", "in-use"}}
        assert disk.bitmaps() == [tapcore.Bitmap("one", 65536, enabled=True)]
        assert disk.bitmap_ranges("one") == [(65536, 65536), (MIB, 65536)]
        disk.sync()
    assert dirty(image, "one") == [(65536, 65536), (MIB, 65536)]


def flags_by_qemu_anyway(image: Path) -> dict[str, set[str]]:
    """The same of an image that is in use."""
    said = json.loads(qemu_img("info", "-U", "--output=json", "-f", "qcow2", image))
    return {b["name"]: set(b["flags"]) for b in said["format-specific"]["data"]["bitmaps"]}


def test_a_disabled_bitmap_is_not_touched(tmp_path: Path, rng: random.Random) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "off", 512)
    qemu_io(image, "write -q 64k 64k", "write -q 3M 5k")
    qemu_img("bitmap", "--disable", image, "off")
    add(image, "on", 512)
    before = structures(image, "off")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        for _ in range(20):
            disk.pwrite(rng.randrange(7 * MIB), rng.randbytes(5000))
    assert structures(image, "off") == before
    assert_same(image, "off", "on")


def test_all_ones_are_stored_without_a_cluster(tmp_path: Path) -> None:
    """One cluster of bits stands for 2 MiB here; qemu-nbd reads what was stored."""
    image = create(tmp_path / "disk.qcow2", 7 * MIB, cluster_size=512)
    add(image, "one", 512)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.discard(MIB, length=6 * MIB)
        disk.pwrite(3 * MIB, bytes(4096))
    table = structures(image, "one")[1][1]
    assert list(struct.unpack(">4Q", table))[1:3] == [1, 1]
    assert dirty(image, "one") == dirty_by_qemu(image, "one") == [(MIB, 6 * MIB)]
    assert_clean(image)
    qemu_io(image, "write -q 0 512")  # and QEMU goes on with it
    assert_same(image, "one")


def test_a_huge_disk_costs_memory_for_what_changes(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 1 << 42, cluster_size=2 * MIB)
    add(image, "one", 65536)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(5 << 40 >> 3, b"x")
        disk.discard(0, length=1 << 42)
        tracker = disk.state.disks.private.tracker
        assert sum(map(len, (r.pages for r in tracker._marking))) == 0
    assert dirty(image, "one") == [(0, 1 << 42)]


# ---- resizing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_bitmaps_follow_the_size_as_with_qemu(
    cluster_size: int, tmp_path: Path, rng: random.Random
) -> None:
    unit = MIB if cluster_size > 512 else MIB // 4
    size = 20 * unit
    image = create(tmp_path / "disk.qcow2", size, cluster_size=cluster_size)
    add(image, "on", 512)
    add(image, "off", 4096)
    qemu_io(
        image,
        f"write -q {unit} {unit}",
        f"write -q {19 * unit} {unit}",
        f"write -q {10 * unit} 512",
    )
    qemu_img("bitmap", "--disable", image, "off")
    twin = tmp_path / "twin.qcow2"
    shutil.copy(image, twin)
    for new in (33 * unit + 512, 19 * unit + 5120, 3 * unit, 40 * unit, 512, 64 * unit):
        at = rng.randrange(min(size, new) // 512) * 512
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            if rng.random() < 0.5:
                disk.pwrite(at, b"x" * 512)
                disk.resize(new)
            else:
                disk.resize(new)
                disk.pwrite(at, b"x" * 512)
        qemu_io(twin, f"write -q -P 0x78 {at} 512")
        qemu_img("resize", "-q", "-f", "qcow2", "--shrink", twin, new)
        size = new
        for name in ("on", "off"):
            assert dirty(image, name) == dirty_by_qemu(image, name) == dirty_by_qemu(twin, name)
        assert flags_by_qemu(image) == flags_by_qemu(twin)
        assert_clean(image)


def test_a_bitmap_in_use_does_not_hinder_a_resize(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB, cluster_size=512)
    add(image, "lost", 512)
    entries = Entries(image)
    entries.set(0, flags=IN_USE)
    entries.save()
    before = structures(image, "lost")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.resize(32 * MIB)
    assert structures(image, "lost") == before
    assert_clean(image)


def test_a_size_that_a_bitmap_cannot_have_is_refused(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB, cluster_size=65536)
    add(image, "fine", 512)
    with (
        tapcore.open(f"qcow2:{image}", readonly=False) as disk,
        pytest.raises(tapcore.UsageError, match="too large"),
    ):
        disk.resize(4 << 40)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x")
    assert_same(image, "fine")


# ---- snapshots ---------------------------------------------------------------------------------


def test_bitmaps_survive_snapshots_and_record_what_those_change(tmp_path: Path) -> None:
    """QEMU refuses to apply one where there are bitmaps; here all of the disk counts as changed."""
    image = create(tmp_path / "disk.qcow2", 8 * MIB, cluster_size=4096)
    qemu_io(image, "write -q -P 1 0 1M")
    add(image, "on")
    add(image, "off", 512, "--disable")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        dd = disk.state.disks
        dd.drv.td_snapshot_create(dd, "one")
        disk.pwrite(MIB, b"x" * 512)
    assert dirty(image, "on") == dirty_by_qemu(image, "on") == [(MIB, 65536)]
    qemu_img("snapshot", "-c", "two", image)
    before = structures(image, "off")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        dd = disk.state.disks
        dd.drv.td_snapshot_delete(dd, "two")
        assert disk.bitmap_ranges("on") == [(MIB, 65536)]
        dd.drv.td_snapshot_apply(dd, "one")
    assert dirty(image, "on") == dirty_by_qemu(image, "on") == [(0, 8 * MIB)]
    assert structures(image, "off") == before
    assert_clean(image)


# ---- bits --------------------------------------------------------------------------------------


def test_runs_of_bits(rng: random.Random) -> None:
    for _ in range(200):
        length = rng.randrange(1, 40)
        content = bytes(rng.choice((0, 0xFF, rng.randrange(256))) for _ in range(length))
        bits = [content[n >> 3] >> (n & 7) & 1 for n in range(length * 8)]
        found = [0] * (length * 8)
        for first, end in set_runs(content):
            found[first:end] = [1] * (end - first)
        assert found == bits
        upto = rng.randrange(length * 8 + 9)
        left = cut(content, upto)
        assert [left[n >> 3] >> (n & 7) & 1 for n in range(length * 8)] == [
            bit if n < upto else 0 for n, bit in enumerate(bits)
        ]
        filled = bytearray(content)
        first = rng.randrange(length * 8)
        end = rng.randrange(first, length * 8) + 1
        fill(filled, first, end)
        assert [filled[n >> 3] >> (n & 7) & 1 for n in range(length * 8)] == [
            1 if first <= n < end else bit for n, bit in enumerate(bits)
        ]
        assert len(filled) == length
