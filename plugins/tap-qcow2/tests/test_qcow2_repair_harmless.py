"""A repair never makes an image worse: mutants of every kind, and cases that QEMU tests as well."""

import os
import random
import struct
from pathlib import Path

import pytest
from qcow2mutants import KINDS, Base, Kind, Tally, mutants, try_repair

import tapcore
from qcow2tools import MIB, assert_clean, create, qemu_img, qemu_io, run
from qcow2walk import walk
from tapcore.tools.check import check_image, check_status
from tapcore.tools.snapshots import create_snapshot

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
MUTANTS = 3
"""Of each kind, that still open. TAPCORE_THOROUGH=320 makes 20,000 of them."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_could_be_read_reads_the_same_after_a_repair(
    kind: Kind, tmp_path: Path, rng: random.Random
) -> None:
    """By us and by QEMU; the next check agrees, and a second repair changes nothing."""
    base, tally = Base.make(kind, tmp_path, rng), Tally()
    for mutant in mutants(base, rng):
        wrong = try_repair(base, mutant, tally, qemu=tally.opened % 3 == 0)
        assert not wrong, (mutant.said, wrong)
        if tally.opened >= MUTANTS * THOROUGH:
            break
    assert tally.tried >= tally.opened


def repair(image: Path, how: str = "all") -> tapcore.CheckResult:
    """`check --repair`."""
    return check_image(f"qcow2:{image}", repair=how)  # type: ignore[arg-type]


def poke(image: Path, at: int, content: bytes) -> None:
    """Overwrite bytes of a file."""
    with image.open("r+b") as file:
        file.seek(at)
        file.write(content)


def with_snapshots(folder: Path) -> tuple[Path, int]:
    """An image with two snapshots, and where the first one's entry lies."""
    image = create(folder / "disk.qcow2", MIB, cluster_size=4096)
    for name, byte in (("one", 1), ("two", 2)):
        qemu_io(image, f"write -P {byte} 0 200k")
        qemu_img("snapshot", "-c", name, image)
    qemu_io(image, "write -P 3 0 100k")
    return image, walk(image.read_bytes()).snapshots_offset


def reads(image: Path, snapshot: str = "") -> bytes:
    """All of it."""
    with tapcore.open(f"qcow2:{image}", readonly=True, snapshot=snapshot) as disk:
        return disk.pread(offset=0, length=disk.size)


# ---- tables that say more than they hold --------------------------------------------------------


@pytest.mark.parametrize("more", [1 << 16, 1 << 12, 100])
def test_an_l1_table_of_a_snapshot_that_is_said_to_be_longer_is_cut(
    more: int, tmp_path: Path
) -> None:
    """What lies behind it is other structures: they are not made to look like entries."""
    image, entry = with_snapshots(tmp_path)
    before = image.read_bytes()
    content = [reads(image, name) for name in ("", "one", "two")]
    (size,) = struct.unpack_from(">I", before, entry + 8)
    poke(image, entry + 8, struct.pack(">I", size + more * 512))
    assert check_status(check_image(f"qcow2:{image}")) == 2
    result = repair(image)
    assert check_status(result) == 0, result
    assert image.read_bytes()[:104] == before[:104]
    assert [reads(image, name) for name in ("", "one", "two")] == content
    assert image.stat().st_size < len(before) + 4 * MIB
    assert_clean(image)


def test_the_disks_own_l1_table_is_cut_too(tmp_path: Path) -> None:
    image, _ = with_snapshots(tmp_path)
    content = reads(image)
    poke(image, 36, struct.pack(">I", 1 << 14))
    result = repair(image)
    assert check_status(result) == 0, result
    assert reads(image) == content
    assert_clean(image)


@pytest.mark.parametrize("offset", [513, 1 << 40])
def test_what_a_snapshot_hides_is_not_given_back(offset: int, tmp_path: Path) -> None:
    """Its L1 table cannot be followed: clusters that seem to be unused may be its own."""
    image, entry = with_snapshots(tmp_path)
    (right,) = struct.unpack_from(">Q", image.read_bytes(), entry)
    poke(image, entry, struct.pack(">Q", offset))
    before = image.read_bytes()
    for how in ("all", "leaks"):
        result = repair(image, how)
        assert result.corruptions
        assert any("kept" in message for message in result.messages), result
    assert image.read_bytes() == before
    poke(image, entry, struct.pack(">Q", right))
    assert_clean(image)


def test_where_the_l1_table_is_gone_nothing_is_changed(tmp_path: Path) -> None:
    image, _ = with_snapshots(tmp_path)
    poke(image, 40, struct.pack(">Q", 1 << 30))
    before = image.read_bytes()
    result = repair(image)
    assert result.check_errors, result
    assert image.read_bytes() == before


def test_a_repair_that_would_change_content_is_not_done(tmp_path: Path) -> None:
    """Version 2 has no zeroes above a parent: an entry that leads nowhere stays, and is told."""
    (tmp_path / "parent.raw").write_bytes(b"p" * MIB)
    image = create(
        tmp_path / "disk.qcow2", parent="parent.raw", form="raw", compat="0.10", cluster_size=4096
    )
    qemu_io(image, "write -P 5 0 64k")
    found = walk(image.read_bytes())
    table = next(place for place in found.places if place.name.startswith("L2"))
    poke(image, table.offset + 8, struct.pack(">Q", 1 << 63 | 1 << 40))
    first = repair(image)
    assert first.corruptions == 1
    before = image.read_bytes()
    assert repair(image).corruptions == 1
    assert image.read_bytes() == before
    raw = tmp_path / "by-qemu.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    assert raw.read_bytes()[4096:8192] == bytes(4096)


# ---- metadata on top of metadata ----------------------------------------------------------------


@pytest.mark.parametrize("target", ["refcount table", "refcount block", "L1 table", "header"])
def test_a_table_on_top_of_another_is_never_written(target: str, tmp_path: Path) -> None:
    """An L1 entry leads there: the first write is refused in words, and the image marked."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    qemu_io(image, "write -P 1 0 512")
    found = walk(image.read_bytes())
    place = next(place for place in found.places if place.name.startswith(target))
    poke(image, found.l1_offset + 8, struct.pack(">Q", place.offset | 1 << 63))
    before = image.read_bytes()
    disk = tapcore.open(f"qcow2:{image}", readonly=False)
    if target == "header":
        disk.pwrite(32768, b"w" * 512)  # an entry of offset 0 is none
        disk.close()
        return
    with pytest.raises(tapcore.TapError, match=r"disk\.qcow2"):
        disk.pwrite(32768, b"w" * 512)
    with pytest.raises(tapcore.TapError):
        disk.close()
    after = image.read_bytes()
    assert after[72:80] == (2).to_bytes(8, "big")  # the corrupt bit
    assert after[:72] + after[80:] == before[:72] + before[80:]


# ---- what QEMU's own tests look at --------------------------------------------------------------


def test_112_two_references_where_one_fits_are_parted(tmp_path: Path) -> None:
    """QEMU asks for wider refcounts, and leaves it so; with a copy for one of them all is whole."""
    image = create(tmp_path / "disk.qcow2", MIB, refcount_bits=1, cluster_size=4096)
    qemu_io(image, "write -P 7 0 4k")
    table = next(p for p in walk(image.read_bytes()).places if p.name.startswith("L2"))
    poke(image, table.offset + 8, image.read_bytes()[table.offset : table.offset + 8])
    assert check_status(repair(image)) == 0
    assert_clean(image)
    assert reads(image)[:8192] == b"\7" * 8192


def test_112_a_refcount_at_its_largest_is_a_leak_and_can_be_given_back(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, refcount_bits=64, cluster_size=4096)
    qemu_io(image, "write -P 7 0 4k")
    found = walk(image.read_bytes())
    table = next(p for p in found.places if p.name.startswith("L2"))
    block = next(p for p in found.places if p.name.startswith("refcount block"))
    host = struct.unpack_from(">Q", found.content, table.offset)[0] & ~(1 << 63)
    poke(image, block.offset + host // 4096 * 8, b"\xff" * 8)
    poke(image, table.offset, struct.pack(">Q", host))
    result = check_image(f"qcow2:{image}")
    assert (result.leaks, result.corruptions) == (1, 0)
    dd = f"qcow2:{image}"
    with pytest.raises(tapcore.TapError, match="would exceed"):
        create_snapshot(dd, "foo")
    assert check_image(dd).leaks == 1
    assert check_status(repair(image, "leaks")) == 0
    assert_clean(image)


def test_217_what_only_a_leak_shared_is_the_disks_own_afterwards(tmp_path: Path) -> None:
    """Deleting a snapshot failed after it was gone: leaks, and flags that follow from them."""
    image = create(tmp_path / "disk.qcow2", MIB)
    qemu_io(image, "write -P 3 0 64k")
    qemu_img("snapshot", "-c", "foo", image)
    rules = tmp_path / "rules.conf"
    rules.write_text('[inject-error]\nevent = "cluster_free"\nerrno = "5"\n')
    run("qemu-img", "snapshot", "-d", "foo", f"blkdebug:{rules}:{image}", status=1)
    assert check_image(f"qcow2:{image}").leaks == 4
    result = repair(image, "leaks")
    assert (check_status(result), result.leaks_fixed) == (0, 4), result
    assert_clean(image)


def test_261_a_snapshot_that_cannot_be_told_is_not_thrown_away(tmp_path: Path) -> None:
    """QEMU cuts too much extra data off, and drops snapshots that are too many, with their data.

    What is wrong is one number, and nobody knows which: here nothing is changed, the check says
    what it is, and the disk itself can be read and converted.
    """
    image, entry = with_snapshots(tmp_path)
    content = reads(image)
    good = image.read_bytes()
    for at, value in ((entry + 36, 1 << 16), (60, 1 << 17), (60, 65_536)):
        image.write_bytes(good)
        poke(image, at, struct.pack(">I", value))
        before = image.read_bytes()
        if value == 1 << 17:
            with pytest.raises(tapcore.TapError, match="too many snapshots"):
                repair(image)
        else:
            result = repair(image)
            assert check_status(result) == 1, result
            assert "nothing was repaired" in result.messages[-1]
            assert reads(image) == content
        assert image.read_bytes() == before


@pytest.mark.parametrize("stored", [True, False])
def test_271_subclusters_at_an_impossible_place(stored: bool, tmp_path: Path) -> None:
    """Those that are not stored go on to read as they did; stored ones are lost, and that is said.

    QEMU leaves an entry with stored ones as it is: the disk stays marked, and reads fail there for
    ever. A repair of all is asked to end that, and says what it cost.
    """
    (tmp_path / "parent.raw").write_bytes(b"\xff" * (128 << 10))
    name = tmp_path / "disk.qcow2"
    image = create(name, parent="parent.raw", form="raw", extended_l2="on")
    qemu_io(image, "write -P 1 4k 2k")
    if not stored:
        qemu_io(image, "write -z 4k 2k")
    table = next(p for p in walk(image.read_bytes()).places if p.name.startswith("L2"))
    poke(image, table.offset + 6, b"\2")
    result = repair(image)
    assert check_status(result) == 0, result
    assert any("is lost" in message for message in result.messages)
    assert_clean(image)
    want = b"\xff" * 4096 + bytes(2048) + b"\xff" * (122 << 10)
    assert reads(image) == want


def test_271_a_bitmap_beside_a_compressed_cluster_says_nothing(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, extended_l2="on")
    qemu_io(image, "write -P 11 -c 0 64k")
    table = next(p for p in walk(image.read_bytes()).places if p.name.startswith("L2"))
    poke(image, table.offset + 8, b"\0\0\0\1\x80\0\0\0")
    assert reads(image)[: 64 << 10] == b"\x0b" * (64 << 10)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"w" * 512)
    assert reads(image)[: 64 << 10] == b"w" * 512 + b"\x0b" * ((64 << 10) - 512)
    assert_clean(image)
