"""Persistent bitmaps: read and kept up as QEMU does it, and never wrong after a crash."""

import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tapcore
from peers import peer
from qcow2tools import MIB, assert_clean, create, qemu_img, qemu_io
from qcow2walk import BITMAP, walk
from tap_qcow2.bitmaps.bits import cut, fill, set_runs
from tapcore.testkit import Recording

Ranges = list[tuple[int, int]]

IN_USE, AUTO, EXTRA_COMPATIBLE = 1, 2, 4


# ---- what QEMU says --------------------------------------------------------------------------


def dirty_by_qemu(image: Path, name: str) -> Ranges:
    """What a bitmap calls dirty, as qemu-nbd exports it."""
    server = ["--", "[", peer("qemu-nbd"), "-r", "-f", "qcow2", "-B", name, str(image), "]"]
    words = [peer("nbdinfo"), "--json", f"--map=qemu:dirty-bitmap:{name}", *server]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return joined((each["offset"], each["length"]) for each in found if each["type"] & 1)


def joined(ranges: Iterator[tuple[int, int]]) -> Ranges:
    """Neighbours in one."""
    found: Ranges = []
    for start, length in ranges:
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return found


def flags_by_qemu(image: Path) -> dict[str, set[str]]:
    """The flags of every bitmap, as `qemu-img info` shows them."""
    said = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", image))
    bitmaps = said["format-specific"]["data"].get("bitmaps", [])
    return {each["name"]: set(each["flags"]) for each in bitmaps}


def add(image: Path, name: str, granularity: int = 65536, *flags: str) -> None:
    """`qemu-img bitmap --add`."""
    qemu_img("bitmap", "--add", "-g", granularity, *flags, image, name)


# ---- and what is said here ---------------------------------------------------------------------


def dirty(image: Path, name: str) -> Ranges:
    """The same here."""
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        found = disk.bitmap_ranges(name)
    assert found == joined(iter(found)), "neighbours are not joined"
    return found


def listed(image: Path) -> dict[str, tapcore.Bitmap]:
    """The bitmaps by name."""
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        return {bitmap.name: bitmap for bitmap in disk.bitmaps()}


def assert_same(image: Path, *names: str) -> None:
    """QEMU and we read the same."""
    for name in names:
        assert dirty(image, name) == dirty_by_qemu(image, name), name


class Entries:
    """A directory in an image's content, to be damaged."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.content = bytearray(image.read_bytes())
        found = walk(bytes(self.content))
        _, self.extension, _ = next(e for e in found.extensions if e[0] == 0x23852875)
        self.count, self.size, self.offset = struct.unpack_from(
            ">I4xQQ", self.content, self.extension
        )
        self.cluster = found.cluster

    def places(self) -> list[int]:
        """Offset of each entry in the file."""
        found, at = [], self.offset
        for _ in range(self.count):
            found.append(at)
            *_, name, extra = BITMAP.unpack_from(self.content, at)
            at += BITMAP.size + name + extra
            at += -at % 8
        return found

    def fields(self, number: int = 0) -> list[int]:
        """Table offset, table size, flags, type, granularity bits, name size, extra size."""
        return list(BITMAP.unpack_from(self.content, self.places()[number]))

    def set(self, number: int = 0, **changes: int) -> None:
        """Change an entry's fields."""
        names = ["table", "entries", "flags", "kind", "bits", "name", "extra"]
        fields = self.fields(number)
        for name, value in changes.items():
            fields[names.index(name)] = value
        BITMAP.pack_into(self.content, self.places()[number], *fields)

    def save(self) -> None:
        """Write the file."""
        self.image.write_bytes(self.content)


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
    before = _structures(image, "off")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        for _ in range(20):
            disk.pwrite(rng.randrange(7 * MIB), rng.randbytes(5000))
    assert _structures(image, "off") == before
    assert_same(image, "off", "on")


def _structures(image: Path, name: str) -> list[tuple[int, bytes]]:
    """Directory entry, table and bits of one bitmap: where they lie, and what they hold."""
    entries = Entries(image)
    content = bytes(entries.content)
    for place, fields in zip(
        entries.places(), (entries.fields(n) for n in range(entries.count)), strict=True
    ):
        table, length, *_, name_size, extra = fields
        start = place + BITMAP.size + extra
        if content[start : start + name_size] != name.encode():
            continue
        found = [(place, content[place : start + name_size])]
        found.append((table, content[table : table + length * 8]))
        for (word,) in struct.iter_unpack(">Q", found[-1][1]):
            if word & ~511:
                found.append((word, content[word : word + entries.cluster]))
        return found
    raise AssertionError(f"no bitmap {name}")


def test_all_ones_are_stored_without_a_cluster(tmp_path: Path) -> None:
    """One cluster of bits stands for 2 MiB here; qemu-nbd reads what was stored."""
    image = create(tmp_path / "disk.qcow2", 7 * MIB, cluster_size=512)
    add(image, "one", 512)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.discard(MIB, length=6 * MIB)
        disk.pwrite(3 * MIB, bytes(4096))
    table = _structures(image, "one")[1][1]
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


# ---- bitmaps that are not for us ---------------------------------------------------------------


def test_a_bitmap_in_use_stays_inconsistent(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "lost")
    add(image, "good")
    entries = Entries(image)
    entries.set(0, flags=IN_USE | AUTO)
    entries.save()
    before = _structures(image, "lost")
    assert listed(image)["lost"].inconsistent
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x")
        with pytest.raises(tapcore.UsageError, match="was not saved properly"):
            disk.bitmap_ranges("lost")
    assert _structures(image, "lost") == before
    assert flags_by_qemu(image) == {"lost": {"auto", "in-use"}, "good": {"auto"}}
    assert_same(image, "good")
    assert_clean(image)


def test_without_the_autoclear_bit_nothing_is_believed(tmp_path: Path) -> None:
    """Somebody who did not know of bitmaps has written the image."""
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    entries = Entries(image)
    entries.content[88:96] = bytes(8)
    entries.save()
    assert listed(image)["one"].inconsistent
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x")
        with pytest.raises(tapcore.UsageError, match="was not saved properly"):
            disk.bitmap_ranges("one")
    entries = Entries(image)
    assert not any(entries.content[88:96])
    entries.content[entries.offset : entries.offset + 65536] = b"\xa5" * 65536
    entries.save()
    assert listed(image) == {}


@pytest.mark.parametrize(
    "changes",
    [{"kind": 2}, {"flags": AUTO | 1 << 3}, {"flags": AUTO, "extra": 4}, {"bits": 40}],
    ids=["type", "flag", "extra-data", "granularity"],
)
def test_what_is_not_known_is_kept(changes: dict[str, int], tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "unknown")
    add(image, "known")
    entries = Entries(image)
    if "extra" in changes:
        changes = changes | {"name": len("unknown") - 4}
    entries.set(0, **changes)
    entries.save()
    name = "own" if "extra" in changes else "unknown"
    before = _structures(image, name)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, bytes(65536))
        disk.pwrite(5 * MIB, bytes(65536))
    assert _structures(image, name) == before
    found = listed(image)
    assert found[name].inconsistent
    assert not found["known"].inconsistent
    assert dirty(image, "known") == [(MIB, 65536), (5 * MIB, 65536)]
    with (
        tapcore.open(f"qcow2:{image}", readonly=False) as disk,
        pytest.raises(tapcore.UsageError, match="cannot be resized"),
    ):
        disk.resize(16 * MIB)
    assert not walk(image.read_bytes()).problems


def test_compatible_extra_data_is_kept_and_the_bitmap_used(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "more-one")
    entries = Entries(image)
    entries.set(0, flags=AUTO | EXTRA_COMPATIBLE, extra=5, name=3)
    entries.save()
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x")
    assert dirty(image, "one") == [(MIB, 65536)]
    entries = Entries(image)
    place = entries.places()[0] + BITMAP.size
    assert entries.content[place : place + 8] == b"more-one"


# ---- damage ------------------------------------------------------------------------------------


DAMAGE: dict[str, Callable[[Entries], None]] = {
    "extension-length": lambda e: struct.pack_into(">I", e.content, e.extension - 4, 16),
    "no-bitmaps": lambda e: struct.pack_into(">I", e.content, e.extension, 0),
    "too-many": lambda e: struct.pack_into(">I", e.content, e.extension, 65536),
    "more-than-there-are": lambda e: struct.pack_into(">I", e.content, e.extension, 3),
    "reserved": lambda e: struct.pack_into(">I", e.content, e.extension + 4, 1),
    "directory-size": lambda e: struct.pack_into(">Q", e.content, e.extension + 8, 1 << 40),
    "directory-short": lambda e: struct.pack_into(">Q", e.content, e.extension + 8, 40),
    "directory-unaligned": lambda e: struct.pack_into(">Q", e.content, e.extension + 16, 512),
    "directory-at-0": lambda e: struct.pack_into(">Q", e.content, e.extension + 16, 0),
    "directory-outside": lambda e: struct.pack_into(">Q", e.content, e.extension + 16, 1 << 40),
    "table-unaligned": lambda e: e.set(0, table=513),
    "table-at-0": lambda e: e.set(0, table=0),
    "table-outside": lambda e: e.set(0, table=1 << 50),
    "table-huge": lambda e: e.set(1, entries=0xFFFF_FFFF),
    "tables-huge": lambda e: e.set(1, entries=5 << 20),
    "no-name": lambda e: e.set(0, name=0),
    "long-name": lambda e: e.set(0, name=1024),
    "name-outside": lambda e: e.set(1, name=900),
    "extra-outside": lambda e: e.set(1, extra=0xFFFF_FFFF),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_directory_is_an_error(kind: str, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    add(image, "two")
    entries = Entries(image)
    DAMAGE[kind](entries)
    entries.save()
    if kind == "tables-huge":
        os.truncate(image, 1 << 30)
    with pytest.raises(tapcore.ImageFormatError):
        listed(image)
    with pytest.raises(tapcore.ImageFormatError):
        dirty(image, "one")
    with pytest.raises(tapcore.ImageFormatError):
        tapcore.open(f"qcow2:{image}", readonly=False)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, length=MIB) == bytes(MIB)


@pytest.mark.parametrize("word", [3 << 16 | 1, 2, 1 << 60, 0x200, 1 << 50])
def test_a_damaged_table_is_an_error(word: int, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    entries = Entries(image)
    struct.pack_into(">Q", entries.content, entries.fields()[0], word)
    entries.save()
    with pytest.raises(tapcore.ImageFormatError, match="table entry"):
        dirty(image, "one")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:  # the disk itself is not damaged
        disk.pwrite(MIB, b"x")
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(MIB, length=1) == b"x"
    assert listed(image)["one"].inconsistent


def test_a_bitmap_that_overlaps_something_is_not_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or the header, given up as a cluster of bits, would be given out for data."""
    image = create(tmp_path / "disk.qcow2", 8 * MIB, cluster_size=512)
    add(image, "one", 512)
    qemu_io(image, "write -q 0 512")
    good = Entries(image)
    table = good.fields()[0]
    (l1,) = struct.unpack_from(">Q", good.content, 40)
    for words in ((l1,), (5 << 16, 5 << 16)):
        entries = Entries(image)
        struct.pack_into(f">{len(words)}Q", entries.content, table, *words)
        entries.content.extend(bytes(1 << 20))
        entries.save()
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            disk.pwrite(MIB, b"x" * 512)
        assert "inconsistent now" in caplog.text
        caplog.clear()
        assert walk(image.read_bytes()).l1_offset == l1
        image.write_bytes(good.content)
    entries.save()
    with pytest.raises(tapcore.ImageFormatError, match="shared"):
        dirty(image, "one")


def test_random_damage_never_does_harm(tmp_path: Path, rng: random.Random) -> None:
    image = create(tmp_path / "disk.qcow2", 40 * MIB, cluster_size=512)
    for name in ("one", "two", "three"):
        add(image, name, 512)
    qemu_io(image, "write -q 1M 512", "write -q 20M 1M", "write -q -z 30M 5M")
    good = image.read_bytes()
    places = [p for p in walk(good).places if p.name.startswith("bitmap")]
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.choice(places)
            bad[place.offset + rng.randrange(place.length)] = rng.choice((0, 1, 0x80, 0xFF, 7))
        image.write_bytes(bad)
        try:
            with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
                for bitmap in disk.bitmaps():
                    disk.bitmap_ranges(bitmap.name)
        except tapcore.TapError:
            pass
        try:
            with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
                disk.pwrite(MIB, b"x" * 5000)
        except tapcore.TapError:
            continue
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            assert disk.pread(MIB, length=5000) == b"x" * 5000


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
    before = _structures(image, "lost")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.resize(32 * MIB)
    assert _structures(image, "lost") == before
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
    before = _structures(image, "off")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        dd = disk.state.disks
        dd.drv.td_snapshot_delete(dd, "two")
        assert disk.bitmap_ranges("on") == [(MIB, 65536)]
        dd.drv.td_snapshot_apply(dd, "one")
    assert dirty(image, "on") == dirty_by_qemu(image, "on") == [(0, 8 * MIB)]
    assert _structures(image, "off") == before
    assert_clean(image)


# ---- failures and crashes ----------------------------------------------------------------------


def test_a_failure_to_save_costs_only_the_bitmaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tap_qcow2.bitmaps import store

    def no_space(*_: object) -> None:
        raise OSError(28, "no space")

    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    monkeypatch.setattr(store._Filling, "_write_table", no_space)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x")
    assert "inconsistent now: No space left" in caplog.text
    assert listed(image)["one"].inconsistent
    assert_clean(image)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(MIB, length=1) == b"x"


def test_an_image_that_cannot_be_marked_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tap_qcow2.bitmaps import tracker

    def failing(*_: object) -> None:
        raise OSError(5, "broken")

    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    before = image.read_bytes()
    monkeypatch.setattr(tracker, "write_flags", failing)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk, pytest.raises(tapcore.TapError):
        disk.pwrite(MIB, b"x")
    assert image.read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"lazy_refcounts": "on"}])
def test_after_a_crash_a_bitmap_says_nothing_or_the_truth(
    options: dict[str, Any], tmp_path: Path, rng: random.Random
) -> None:
    size = MIB
    image = create(tmp_path / "disk.qcow2", size, **options)
    crashed = tmp_path / "crashed.qcow2"
    qemu_io(image, "write -q -P 1 0 1M")
    for name, granularity in (("a", 512), ("b", 65536)):
        add(image, name, granularity)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB // 2, b"\2" * (MIB // 4))  # bits that are there before
    before = {name: dirty(image, name) for name in "ab"}
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        old = disk.pread(0, length=size)
    with Recording(image) as recording, tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        for _ in range(4):
            for _ in range(6):
                disk.pwrite(rng.randrange(size - 9000), rng.randbytes(rng.choice((512, 9000))))
            disk.sync()
        if not rng.randrange(2):
            disk.resize(3 * MIB)
    states = [*recording.prefixes(2), *recording.states(rng, 50)]
    said = 0
    for state in states:
        state.write({image: crashed})
        found = walk(crashed.read_bytes())
        problems = [p for p in found.problems if not (found.incompatible & 1 and "refcount" in p)]
        assert not problems, f"{state}: {problems[:3]}"
        with tapcore.open(f"qcow2:{crashed}", readonly=True) as disk:
            now = disk.pread(0, length=size)
            for bitmap in disk.bitmaps():
                if bitmap.inconsistent:
                    continue
                said += 1
                ranges = disk.bitmap_ranges(bitmap.name)
                _covers(ranges, before[bitmap.name])
                _covers(ranges, list(_changed(old, now)))
    assert said > 4
    assert_clean(image)
    assert_same(image, "a", "b")


def _changed(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    for at in range(0, len(old), 512):
        if old[at : at + 512] != new[at : at + 512]:
            yield at, 512


def _covers(ranges: Ranges, wanted: Ranges) -> None:
    for start, length in wanted:
        assert any(s <= start and start + length <= s + n for s, n in ranges), (start, length)


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
