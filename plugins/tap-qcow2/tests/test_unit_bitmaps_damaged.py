"""Persistent bitmaps that are in use, unknown or damaged: kept as they are, and not believed."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from qcow2bitmaps import (
    AUTO,
    EXTRA_COMPATIBLE,
    IN_USE,
    Entries,
    add,
    assert_same,
    dirty,
    flags_by_qemu,
    listed,
    structures,
)

import tapcore
from qcow2tools import MIB, assert_clean, create, qemu_io
from qcow2walk import BITMAP, walk

# ---- bitmaps that are not for us ---------------------------------------------------------------


def test_a_bitmap_in_use_stays_inconsistent(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "lost")
    add(image, "good")
    entries = Entries(image)
    entries.set(0, flags=IN_USE | AUTO)
    entries.save()
    before = structures(image, "lost")
    assert listed(image)["lost"].inconsistent
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x")
        with pytest.raises(tapcore.UsageError, match="was not saved properly"):
            disk.bitmap_ranges("lost")
    assert structures(image, "lost") == before
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
    before = structures(image, name)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, bytes(65536))
        disk.pwrite(5 * MIB, bytes(65536))
    assert structures(image, name) == before
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
