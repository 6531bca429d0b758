"""Amending in place: alternately with qemu-img, with the same content, and after crashes."""

import random
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tapcore
from qcow2tools import (
    MIB,
    PASSPHRASE,
    SECRET,
    assert_clean,
    content_by_qemu,
    convert,
    create,
    image_options,
    qemu_img,
    qemu_io,
    source_content,
)
from qcow2walk import SNAPSHOT, walk
from tapcore import DiskDriver
from tapcore.interface.registry import default_registry
from tapcore.opening.chain import close_disk, open_disk
from tapcore.testkit import Recording

WIDTHS = (1, 2, 4, 8, 16, 32, 64)


def leaf(disk: tapcore.Disk) -> DiskDriver:
    """The image that the hooks are called for."""
    found = disk.state.disks
    return found


def change(disk: tapcore.Disk, **options: Any) -> None:
    """`td_amend` of an open disk."""
    dd = leaf(disk)
    dd.drv.td_amend(dd, {name: str(value) for name, value in options.items()})


def amend(image: Path, **options: Any) -> None:
    """The same of an image."""
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        change(disk, **options)


def told(image: Path) -> dict[str, Any]:
    """What the format says of itself."""
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        return disk.info()


def fill(image: Path, rng: random.Random, size: int, count: int = 20) -> None:
    """Data, and zeroes with and without space, by QEMU."""
    commands = []
    for _ in range(count):
        at = rng.randrange(size // 4096) * 4096
        length = min(rng.choice((4096, 20_480, 200_704)), size - at)
        what = rng.choice(("write -q -P 7", "write -q -P 9", "write -q -z", "write -q -z -u"))
        commands.append(f"{what} {at} {length}")
    qemu_io(image, *commands)


# ---- alternately -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parent"),
    [
        ({"cluster_size": 4096}, False),
        ({"cluster_size": 8192}, True),
        ({"cluster_size": 512}, True),
        ({"cluster_size": 4096, "compat": "0.10"}, True),
    ],
    ids=["alone", "with-parent", "cluster-512", "v2"],
)
def test_amended_alternately_with_qemu(
    options: dict[str, Any], parent: bool, tmp_path: Path, rng: random.Random
) -> None:
    size = 5 * MIB + 4096
    image = tmp_path / "disk.qcow2"
    if parent:
        (tmp_path / "parent.raw").write_bytes(rng.randbytes(3 * MIB))
        create(image, size, parent="parent.raw", form="raw", **options)
    else:
        create(image, size, **options)
    fill(image, rng, size)
    qemu_img("snapshot", "-c", "one", image)
    fill(image, rng, size)
    want = content_by_qemu(image), content_by_qemu(image, snapshot="one")
    steps: list[dict[str, Any]] = [
        {"compat": "0.10", "refcount_bits": 16},
        {"compat": "1.1"},
        {"lazy_refcounts": "on"},
        {"refcount_bits": rng.choice(WIDTHS[1:])},
        {"lazy_refcounts": "off"},
        {"compat": "1.1", "refcount_bits": rng.choice(WIDTHS[1:]), "lazy_refcounts": "on"},
    ]
    for number in range(12):
        step = steps[number % len(steps)]
        if (number + number // len(steps)) % 2:
            text = ",".join(f"{name}={value}" for name, value in step.items())
            qemu_img("amend", "-f", "qcow2", "-o", text, image)
        else:
            amend(image, **step)
        found = told(image)
        assert {name: value for name, value in step.items() if str(found[name]) != str(value)} in (
            {},
            {"lazy_refcounts": step.get("lazy_refcounts")},
        )
        assert_clean(image)
        assert walk(image.read_bytes()).problems == []
        assert (content_by_qemu(image), content_by_qemu(image, snapshot="one")) == want
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, length=size) == want[0]


@pytest.mark.parametrize("before", WIDTHS)
def test_every_width_from_every_width(before: int, tmp_path: Path, rng: random.Random) -> None:
    """With clusters of 512 bytes there are many blocks, and some that are not needed."""
    image = create(tmp_path / "disk.qcow2", 2 * MIB, cluster_size=512, refcount_bits=before)
    qemu_io(image, "write -q -P 5 64k 700k", "discard 70k 500k")
    for after in WIDTHS:
        copy = tmp_path / f"{after}.qcow2"
        shutil.copy(image, copy)
        content = rng.randbytes(30_000)
        with tapcore.open(f"qcow2:{copy}", readonly=False) as disk:
            disk.pwrite(5000, content)
            change(disk, refcount_bits=after)
            disk.pwrite(MIB, content)  # the open image goes on
            want = disk.pread(0, length=2 * MIB)
        assert told(copy)["refcount_bits"] == after
        found = walk(copy.read_bytes())
        assert (found.problems, found.copied_wrong, found.leaks) == ([], [], 0)
        assert_clean(copy)
        assert content_by_qemu(copy) == want


@pytest.mark.parametrize("cluster_size", [65536, 2 * MIB])
def test_widths_with_large_blocks(cluster_size: int, tmp_path: Path) -> None:
    """QEMU's own way with them takes minutes."""
    image = create(tmp_path / "disk.qcow2", 1 << 36, cluster_size=cluster_size)
    qemu_io(image, "write -q -P 5 1M 5M", "write -q -P 6 60G 5M")
    for bits in (64, 1, 8, 16):
        amend(image, refcount_bits=bits)
        assert_clean(image)
    qemu_io(image, "read -q -P 5 1M 5M", "read -q -P 6 60G 5M", "write -q -P 7 30G 5M")
    assert_clean(image)


def test_the_open_image_goes_on_after_each_change(tmp_path: Path, rng: random.Random) -> None:
    size = 3 * MIB
    image = create(tmp_path / "disk.qcow2", size, cluster_size=4096)
    steps: list[dict[str, Any]] = [
        {"lazy_refcounts": "on"},
        {"refcount_bits": 64},
        {"compat": "0.10", "refcount_bits": 16},
        {"compat": "1.1", "lazy_refcounts": "on", "refcount_bits": 8},
        {"lazy_refcounts": "off"},
    ]
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        want = bytearray(size)
        for step in steps:
            for _ in range(5):
                at = rng.randrange(size - 20_000)
                content = rng.randbytes(rng.choice((512, 20_000)))
                disk.pwrite(at, content)
                want[at : at + len(content)] = content
            disk.zero(MIB, length=65536)
            want[MIB : MIB + 65536] = bytes(65536)
            change(disk, **step)
            assert disk.pread(0, length=size) == want
    assert_clean(image)
    assert content_by_qemu(image) == want


@pytest.mark.parametrize(
    "options", [{"extended_l2": "on"}, {"data_file": ""}], ids=["extended", "data-file"]
)
def test_widths_of_other_kinds_of_images(options: dict[str, Any], tmp_path: Path) -> None:
    if "data_file" in options:
        options = {"data_file": tmp_path / "disk.data"}
    image = create(tmp_path / "disk.qcow2", 8 * MIB, **options)
    qemu_io(image, "write -q -P 5 1M 700k")
    before = content_by_qemu(image)
    for bits in (1, 64, 16):
        amend(image, refcount_bits=bits, lazy_refcounts="on")
        assert told(image)["refcount_bits"] == bits
        assert_clean(image)
        assert content_by_qemu(image) == before


def test_compressed_clusters_stay(tmp_path: Path, rng: random.Random) -> None:
    raw = tmp_path / "source.raw"
    raw.write_bytes(source_content(rng, 3 * MIB))
    image = convert(raw, tmp_path / "disk.qcow2", compress=True, cluster_size=16384)
    for step in ({"compat": "0.10"}, {"compat": "1.1"}, {"refcount_bits": 64}):
        amend(image, **step)
        assert_clean(image)
        assert content_by_qemu(image) == raw.read_bytes()


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    before = image.read_bytes()
    amend(image, compat="1.1", refcount_bits=16, lazy_refcounts="off")
    assert image.read_bytes() == before


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted", "why"),
    [
        ({}, {"cluster_size": "4096"}, "compat, lazy_refcounts, refcount_bits"),
        ({}, {"compat": "0.9"}, "compat must be 0.10 or 1.1"),
        ({}, {"lazy_refcounts": "yes"}, "on or off"),
        ({}, {"refcount_bits": "3"}, "power of two"),
        ({}, {"refcount_bits": "128"}, "power of two"),
        ({}, {"compat": "0.10", "refcount_bits": "8"}, "exclude each other"),
        ({}, {"compat": "0.10", "lazy_refcounts": "on"}, "needs compat=1.1"),
        ({"refcount_bits": 8}, {"compat": "0.10"}, "exclude each other"),
        ({"compat": "0.10"}, {"refcount_bits": "8"}, "exclude each other"),
        ({"compat": "0.10"}, {"lazy_refcounts": "on"}, "needs compat=1.1"),
        ({"extended_l2": "on"}, {"compat": "0.10"}, "extended L2"),
        ({"compression_type": "zstd"}, {"compat": "0.10"}, "compression"),
        ({"data_file": ""}, {"compat": "0.10"}, "external data file"),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], wanted: dict[str, str], why: str, tmp_path: Path
) -> None:
    if "data_file" in options:
        options = {"data_file": tmp_path / "disk.data"}
    image = create(tmp_path / "disk.qcow2", MIB, **options)
    before = image.read_bytes()
    with pytest.raises(tapcore.UsageError, match=why):
        amend(image, **wanted)
    assert image.read_bytes() == before


def test_bitmaps_need_version_3(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    qemu_img("bitmap", "--add", image, "one")
    with pytest.raises(tapcore.UsageError, match="persistent bitmaps"):
        amend(image, compat="0.10")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        change(disk, refcount_bits=64, lazy_refcounts="on")
        disk.pwrite(MIB, b"x")
    assert_clean(image)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.bitmap_ranges("one") == [(MIB, 65536)]


def test_a_refcount_without_room_is_refused(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    qemu_io(image, "write -q 0 64k")
    for name in "abcd":
        qemu_img("snapshot", "-c", name, image)
    before = image.read_bytes()
    for bits in (1, 2):
        with pytest.raises(tapcore.UsageError, match="a refcount of 5"):
            amend(image, refcount_bits=bits)
    assert image.read_bytes() == before
    amend(image, refcount_bits=4)
    assert_clean(image)


def test_snapshots_of_another_size_need_version_3(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    qemu_img("snapshot", "-c", "one", image)
    qemu_img("resize", "-q", "-f", "qcow2", image, 2 * MIB)
    before = image.read_bytes()
    with pytest.raises(tapcore.UsageError, match="snapshots of another size"):
        amend(image, compat="0.10")
    assert image.read_bytes() == before


@pytest.mark.parametrize("kind", ["counted-behind-the-end", "block-twice", "block-not-counted"])
def test_wrong_refcounts_are_refused(kind: str, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    content = bytearray(image.read_bytes())
    found = walk(bytes(content))
    table = found.reftable_offset
    (block,) = struct.unpack_from(">Q", content, table)
    if kind == "counted-behind-the-end":
        struct.pack_into(">H", content, block + 2 * 1000, 1)
    elif kind == "block-twice":
        struct.pack_into(">Q", content, table + 8, block)
    else:
        struct.pack_into(">H", content, block + 2 * (block >> 12), 0)
    image.write_bytes(content)
    with pytest.raises(tapcore.ImageFormatError, match="check and repair"):
        amend(image, refcount_bits=64)
    after = image.read_bytes()
    assert after[: len(content)] == content


# ---- zero clusters -----------------------------------------------------------------------------


def test_zero_clusters_that_snapshots_share(tmp_path: Path, rng: random.Random) -> None:
    """In one L2 table that both use, in tables of their own, and over data that the other has."""
    size = 4 * MIB
    (tmp_path / "parent.raw").write_bytes(rng.randbytes(size))
    image = create(
        tmp_path / "disk.qcow2", size, parent="parent.raw", form="raw", cluster_size=4096
    )
    qemu_io(image, "write -q -P 1 0 64k", "write -q -z 64k 64k", "write -q -z -u 128k 64k")
    qemu_io(image, "write -q -P 2 3M 64k", "write -q -z -u 3200k 64k")
    qemu_img("snapshot", "-c", "one", image)
    qemu_io(image, "write -q -z 0 32k", "write -q -P 3 64k 16k", "write -q -z 3M 16k")
    qemu_img("snapshot", "-c", "two", image)
    qemu_io(image, "write -q -z -u 16k 32k", "write -q -P 4 130k 4k")
    names = ("one", "two")
    want = [content_by_qemu(image), *(content_by_qemu(image, snapshot=name) for name in names)]
    amend(image, compat="0.10")
    assert told(image)["version"] == 2
    assert_clean(image)
    for name, content in zip(("", *names), want, strict=True):
        assert content_by_qemu(image, snapshot=name) == content, name
    for name in names:
        qemu_img("snapshot", "-d", name, image)
        assert_clean(image)
    assert content_by_qemu(image) == want[0]


def test_zeroes_without_a_parent_take_no_space(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 1 << 40)
    qemu_io(image, "write -q -z -u 0 256M", "write -q -P 1 1G 64k")
    size = image.stat().st_size
    amend(image, compat="0.10")
    assert image.stat().st_size == size
    assert_clean(image)


def test_zeroes_of_an_encrypted_image_are_encrypted(tmp_path: Path, rng: random.Random) -> None:
    pytest.importorskip("cryptography")
    size = 2 * MIB
    (tmp_path / "parent.raw").write_bytes(rng.randbytes(size))
    image = tmp_path / "disk.qcow2"
    create(image, size, parent="parent.raw", form="raw", encrypt_format="luks")
    options = [*SECRET, "--image-opts"]
    for command in ("write -q -P 1 0 512k", "write -q -z -u 256k 512k", "write -q -z 0 64k"):
        qemu_io(image_options(image), command, options=options)  # type: ignore[arg-type]
    want = content_by_qemu(image, encrypted=True)
    assert not any(want[256 << 10 : 768 << 10])
    with tapcore.open(f"qcow2:{image}", keys=PASSPHRASE.encode(), readonly=False) as disk:
        change(disk, compat="0.10")
        assert disk.pread(0, length=size) == want
    assert content_by_qemu(image, encrypted=True) == want
    assert walk(image.read_bytes()).version == 2


# ---- what the header holds ---------------------------------------------------------------------


def test_extensions_and_names_are_kept(tmp_path: Path) -> None:
    name = "p" * 200 + ".raw"
    (tmp_path / name).write_bytes(bytes(MIB))
    image = create(tmp_path / "disk.qcow2", MIB, parent=name, form="raw")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        opened = leaf(disk).private
        opened.header.set_extension(0x12345678, b"kept as it is")
        opened.header_writer.write()
    for version in ("0.10", "1.1", "0.10", "1.1"):
        amend(image, compat=version)
        said = qemu_img("info", "--output=json", image)
        assert name in said
        assert f'"compat": "{version}"' in said
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            header = leaf(disk).private.header
            assert header.extension(0x12345678) == b"kept as it is"
            assert (header.backing_file, header.backing_format) == (name, "raw")


def test_an_old_snapshot_table_is_completed(tmp_path: Path) -> None:
    """Version 2 did not demand that a snapshot tells its disk's size; version 3 does."""
    image = create(tmp_path / "disk.qcow2", 2 * MIB, compat="0.10")
    qemu_io(image, "write -q -P 1 0 64k")
    qemu_img("snapshot", "-c", "old", image)
    qemu_io(image, "write -q -P 2 0 64k")
    content = bytearray(image.read_bytes())
    at = walk(bytes(content)).snapshots_offset
    fields = list(SNAPSHOT.unpack_from(content, at))
    extra = fields[-1]
    tail = content[at + SNAPSHOT.size + extra : at + SNAPSHOT.size + extra + 16]
    fields[-1] = 0
    SNAPSHOT.pack_into(content, at, *fields)
    content[at + SNAPSHOT.size : at + SNAPSHOT.size + 16] = tail
    image.write_bytes(content)
    want = content_by_qemu(image, snapshot="old")
    amend(image, compat="1.1")
    assert_clean(image)
    assert content_by_qemu(image, snapshot="old") == want
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        (snapshot,) = disk.snapshots()
        assert (snapshot.name, snapshot.disk_size) == ("old", 2 * MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x" * 100_000)
    assert_clean(image)


def test_lazy_refcounts_are_not_behind_afterwards(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 8 * MIB, lazy_refcounts="on")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x" * 300_000)
        disk.sync()
        assert walk(image.read_bytes()).incompatible & 1
        change(disk, lazy_refcounts="off")
        found = walk(image.read_bytes())
        assert (found.incompatible & 1, found.problems, found.leaks) == (0, [], 0)
        disk.pwrite(3 * MIB, b"x" * 300_000)
        disk.sync()
        found = walk(image.read_bytes())
        assert (found.incompatible & 1, found.problems) == (0, [])
    assert_clean(image)


def test_an_image_that_was_not_closed_is_repaired_first(tmp_path: Path) -> None:
    """Also where it is opened for its metadata only, which repairs nothing by itself."""
    image = create(tmp_path / "disk.qcow2", 8 * MIB, lazy_refcounts="on", cluster_size=4096)
    crashed = tmp_path / "crashed.qcow2"
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x" * 300_000)
        disk.sync()
        shutil.copy(image, crashed)
        want = disk.pread(0, length=8 * MIB)
    assert walk(crashed.read_bytes()).problems
    options = tapcore.OpenOptions(metadata_only=True)
    state = open_disk(f"qcow2:{crashed}", default_registry(), flags=0, options=options)
    dd = state.disks
    dd.drv.td_amend(dd, {"refcount_bits": "64"})
    close_disk(state)
    assert_clean(crashed)
    assert content_by_qemu(crashed) == want


def test_damaged_images_never_make_it_fail_badly(tmp_path: Path, rng: random.Random) -> None:
    """It is refused with a reason, or the image is as sound as it was."""
    image = create(tmp_path / "disk.qcow2", 2 * MIB, cluster_size=4096)
    fill(image, rng, 2 * MIB)
    qemu_img("snapshot", "-c", "one", image)
    fill(image, rng, 2 * MIB)
    good = image.read_bytes()
    places = walk(good).places
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 2))):
            place = rng.choice(places)
            at = place.offset + rng.randrange(place.length)
            bad[at] = rng.choice((0, 1, 0x10, 0x80, 0xFF))
        image.write_bytes(bad)
        for step in ({"compat": "0.10"}, {"refcount_bits": rng.choice((1, 4, 32, 64))}):
            with suppress(tapcore.TapError):
                amend(image, **step)
        assert image.stat().st_size < 4 * len(good)


# ---- crashes -----------------------------------------------------------------------------------

CRASHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "up": ({"compat": "0.10"}, {"compat": "1.1"}),
    "down": ({}, {"compat": "0.10"}),
    "wider": ({"cluster_size": 512}, {"refcount_bits": 64}),
    "narrower": ({"cluster_size": 512, "refcount_bits": 64}, {"refcount_bits": 2}),
    "lazy-off": ({"lazy_refcounts": "on"}, {"lazy_refcounts": "off"}),
    "all": (
        {"cluster_size": 4096, "lazy_refcounts": "on", "refcount_bits": 8},
        {"compat": "0.10", "refcount_bits": 16},
    ),
}


@pytest.mark.parametrize("kind", CRASHES)
def test_a_crash_while_it_is_amended(kind: str, tmp_path: Path, rng: random.Random) -> None:
    before, after = CRASHES[kind]
    size = MIB
    parent = "parent" + "-" * rng.choice((0, 60, 240)) + ".raw"
    if before.get("cluster_size") == 512:
        parent = "parent.raw"  # all of the header lies in one sector
    below = rng.randbytes(size)
    (tmp_path / parent).write_bytes(below)
    (tmp_path / "crashed").mkdir()
    shutil.copy(tmp_path / parent, tmp_path / "crashed")
    image = create(tmp_path / "disk.qcow2", size, parent=parent, form="raw", **before)
    crashed = tmp_path / "crashed" / "disk.qcow2"
    fill(image, rng, size, 10)
    qemu_img("snapshot", "-c", "one", image)
    fill(image, rng, size, 10)
    want = content_by_qemu(image), content_by_qemu(image, snapshot="one")
    with Recording(image) as recording, tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        change(disk, **after)
    step = max(len(recording.changes) // 40, 1)
    seen = set()
    for state in (*recording.prefixes(step), *recording.states(rng, 50)):
        state.write({image: crashed})
        found = walk(crashed.read_bytes())
        problems = found.problems + found.copied_wrong
        if found.incompatible & 1:  # refcounts are behind, and COPIED flags cannot be judged
            problems = [each for each in found.problems if "refcount of" not in each]
        assert not problems, f"{state}: {problems[:3]}"
        for name, content in zip(("", "one"), want, strict=True):
            with tapcore.open(f"qcow2:{crashed}", readonly=True, snapshot=name) as disk:
                assert disk.pread(0, length=size) == content, f"{state}: {name}"
        seen.add((found.version, found.order, found.compatible))
    assert len(seen) > 1
    assert_clean(image)
    assert content_by_qemu(image) == want[0]


@pytest.mark.parametrize("bitmaps", [False, True], ids=["plain", "with-bitmaps"])
def test_a_crash_while_another_parent_is_recorded(
    bitmaps: bool, tmp_path: Path, rng: random.Random
) -> None:
    """The header has more than a sector; at any moment it names a parent whole, or none."""
    names = [f"{letter * rng.choice((1, 200, 250))}.raw" for letter in "abc"]
    names[1:] = [f"{'d' * 200}/{name}" for name in names[1:]]
    (tmp_path / "crashed").mkdir()
    for name in names:
        for path in (tmp_path / name, tmp_path / "crashed" / name):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(MIB))
    image = create(tmp_path / "disk.qcow2", MIB, parent=names[0], form="raw")
    crashed = tmp_path / "crashed" / "disk.qcow2"
    if bitmaps:
        qemu_img("bitmap", "--add", image, "one")
    with Recording(image) as recording, tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        dd = leaf(disk)
        for name in (names[1], names[2], "", names[2], names[1], names[0], names[1], ""):
            parent = tapcore.DiskId(name, "aio") if name else None
            dd.drv.td_set_parent(dd, parent)
    seen = set()
    for state in (*recording.prefixes(), *recording.states(rng, 80)):
        state.write({image: crashed})
        with tapcore.open(f"qcow2:{crashed}", readonly=True) as disk:
            recorded = leaf(disk).private.header.parent
            assert recorded is None or recorded.name in names, f"{state}: {recorded}"
            assert [bitmap.name for bitmap in disk.bitmaps()] == (["one"] if bitmaps else [])
        seen.add(recorded.name if recorded else "")
    assert seen == {*names, ""}
    assert_clean(image)
