"""Images of Xen's blktap, and what its programs find in them after we have written there."""

import errno
import hashlib
import random
import struct
from pathlib import Path

import pytest

import tapcore
from qcowtools import KIB, MIB, qemu_content, qemu_io, walk
from tap_qcow import qcow_create
from tapcore import ImageFile, TdState

L1 = 4096
"""Where blktap puts the L1 table."""

EXTENT = 512
"""Clusters of 4 KiB that it allocates at a time."""


class Blktap:
    """An image as blktap's driver understands it, with every short cut that it takes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        (self.size,) = struct.unpack_from(">Q", content, 24)
        self.entries = -(-self.size // (2 * MIB))
        table = content[L1 : L1 + 8 * self.entries]
        magic, checksum, alloc, self.flags = struct.unpack_from(">4s4sII", content, 48)
        assert magic == b"XEN\xfb"
        self.valid = checksum == hashlib.md5(table).digest()[3::-1]
        self.min_cluster_alloc = alloc if self.valid else 1
        self.l1 = struct.unpack(f">{self.entries}Q", table)

    def disk(self) -> bytes:
        """All of the disk."""
        out = bytearray()
        for l2 in self.l1:
            for number in range(512):
                where = self._cluster(l2, number)
                part = self.content[where : where + 4096] if where else b""
                out += part.ljust(4096, b"\0")
        return bytes(out[: self.size])

    def _cluster(self, l2: int, number: int) -> int:
        if not l2:
            return 0
        if self.min_cluster_alloc == EXTENT:  # the L2 table is not read
            return l2 + 4096 + number * 4096
        (entry,) = struct.unpack_from(">Q", self.content, l2 + 8 * number)
        return int(entry)


def blktap_image(
    path: Path, disk: bytes | bytearray, *, little: bool = False, flags: int = 1, first: int = 8192
) -> None:
    """A file as blktap leaves it: 2 MiB of the disk at a time, with an L2 table in front.

    Args:
        path: of the file.
        disk: the content.
        little: the L1 table in the byte order of the machine, as before 2008.
        flags: of the extension.
        first: where the first L2 table goes, bytes.
    """
    entries = -(-len(disk) // (2 * MIB))
    l1 = [0] * entries
    body = bytearray()
    for index in range(entries):
        piece = disk[index * 2 * MIB : (index + 1) * 2 * MIB]
        if not any(piece):
            continue
        l1[index] = first + len(body)
        data = l1[index] + 4096
        body += struct.pack(">512Q", *range(data, data + 2 * MIB, 4096))
        body += piece.ljust(2 * MIB, b"\0")
    table = struct.pack(f">{entries}Q", *l1)
    checksum = hashlib.md5(table).digest()[3::-1]
    header = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, len(disk), 12, 9, 0, 0, L1)
    header += struct.pack(">4s4sII", b"XEN\xfb", checksum, EXTENT, flags)
    stored = struct.pack(f"<{entries}Q", *l1) if little else table
    path.write_bytes((header.ljust(L1, b"\0") + stored).ljust(first, b"\0") + body)


def sparse_content(rng: random.Random) -> bytearray:
    size = 9 * MIB + 1024
    content = bytearray(size)
    for at in (0, 4 * MIB + 5000, size - 3000):
        content[at : at + 2000] = rng.randbytes(2000)
    return content


def leaf_of(state: TdState) -> tapcore.DiskDriver:
    return state.disks


# ---- qcow_create -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "checksum", "entries", "length"),
    [
        (1 * MIB, "2b36ea7d", 1, 8192),
        (64 * MIB, "91978a34", 32, 8192),
        (1024 * MIB, "670b0f62", 512, 8192),
    ],
)
def test_qcow_create_makes_what_the_original_made(
    size: int, checksum: str, entries: int, length: int, tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow"
    assert qcow_create(str(image), size, None, 1) == 0
    content = image.read_bytes()
    want = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, size, 12, 9, 0, 0, L1)
    want += struct.pack(">4s4sII", b"XEN\xfb", bytes.fromhex(checksum), 512, 1)
    assert content == want.ljust(length, b"\0")
    assert Blktap(content).valid
    assert Blktap(content).entries == entries


@pytest.mark.parametrize(
    ("size", "length"), [(1 * MIB, 1_057_280), (4 * MIB, 4_203_520), (64 * MIB, 67_133_440)]
)
def test_without_the_sparse_flag_the_file_is_long(size: int, length: int, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow"
    qcow_create(str(image), size, None, 0)
    assert image.stat().st_size == length
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        disk.pwrite(size - 700, b"x" * 700)
        assert disk.pread(0, length=size) == bytes(size - 700) + b"x" * 700
    assert qemu_content(image) == bytes(size - 700) + b"x" * 700


def test_a_child_records_the_real_path_and_has_the_parents_size(tmp_path: Path) -> None:
    parent, link, child = tmp_path / "parent.raw", tmp_path / "link", tmp_path / "child.qcow"
    parent.write_bytes(b"p" * (1 * MIB))
    link.symlink_to(parent)
    qcow_create(str(child), 12345, str(link), 1)
    content = child.read_bytes()
    name = str(parent).encode()
    offset, length, mtime, size = struct.unpack_from(">QIIQ", content, 8)
    assert (offset, length, mtime, size) == (64, len(name), int(parent.stat().st_mtime), 1 * MIB)
    assert content[64 : 64 + len(name)] == name
    assert content[32:34] == bytes((9, 12))
    with tapcore.open(f"qcow:{child}", readonly=False) as disk:
        disk.pwrite(700, b"c" * 100)
        assert disk.pread(0, length=1024) == b"p" * 700 + b"c" * 100 + b"p" * 224
    assert qemu_content(child)[:1024] == b"p" * 700 + b"c" * 100 + b"p" * 224


def test_what_cannot_be_made_raises_and_leaves_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow"
    with pytest.raises(OSError, match="No such file"):
        qcow_create(str(image), MIB, str(tmp_path / "missing"), 1)
    for size in (0, 511, -512, 1 << 60):
        with pytest.raises(tapcore.UsageError):
            qcow_create(str(image), size, None, 1)
    assert not image.exists()


# ---- what blktap finds -------------------------------------------------------------------------


def test_written_images_are_right_for_blktap(tmp_path: Path, rng: random.Random) -> None:
    """Opened, written and closed three times, with its short cut never taken wrongly."""
    image = tmp_path / "disk.qcow"
    qcow_create(str(image), 9 * MIB, None, 1)
    model = bytearray(9 * MIB)
    for _ in range(3):
        with tapcore.open(f"qcow:{image}", readonly=False) as disk:
            for _ in range(10):
                at = rng.randrange(len(model) - 20000)
                model[at : at + 20000] = rng.randbytes(20000)
                disk.pwrite(at, model[at : at + 20000])
        found = Blktap(image.read_bytes())
        assert found.disk() == model
        assert found.valid
        assert found.min_cluster_alloc == 1
        assert found.flags == 3  # sparse, and the L1 table is big-endian
        assert qemu_content(image) == model


def test_an_image_that_blktap_filled_stays_so_while_nothing_is_allocated(
    tmp_path: Path, rng: random.Random
) -> None:
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model)
    before = image.read_bytes()
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        assert disk.pread(0, length=disk.size) == model
        disk.pwrite(100, b"in place")
        model[100:108] = b"in place"
    found = Blktap(image.read_bytes())
    assert found.valid
    assert found.min_cluster_alloc == EXTENT
    assert found.disk() == model
    assert image.read_bytes()[:L1] == before[:L1]


def test_an_allocation_in_it_turns_the_short_cut_off(tmp_path: Path, rng: random.Random) -> None:
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        disk.pwrite(2 * MIB + 9000, b"new" * 1000)
        model[2 * MIB + 9000 : 2 * MIB + 12000] = b"new" * 1000
        disk.sync()
        crashed = Blktap(image.read_bytes())  # not closed: the checksum is of another table
        assert not crashed.valid
        assert crashed.disk() == model
    found = Blktap(image.read_bytes())
    assert found.valid
    assert found.min_cluster_alloc == 1
    assert found.disk() == model
    assert not walk(image.read_bytes()).problems


def test_the_short_cut_is_off_on_disk_before_a_table_changes(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of the changed tables a crash leaves, blktap looks into them."""
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model)
    before = Blktap(image.read_bytes())
    safe: list[Blktap] = []
    flush = ImageFile.flush_blocking

    def flushed(file: ImageFile) -> int:
        safe.append(Blktap(image.read_bytes()))
        return flush(file)

    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        disk.pwrite(2 * MIB + 9000, b"new" * 1000)
        monkeypatch.setattr(ImageFile, "flush_blocking", flushed)
        disk.sync()
    assert safe[0].l1 == before.l1 != safe[1].l1
    assert safe[0].valid
    assert safe[0].min_cluster_alloc == 1
    assert safe[0].disk() == model


def test_a_note_that_could_not_be_written_is_written_again(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else blktap would take its short cut through tables that have changed."""
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        disk.pwrite(2 * MIB + 9000, b"new" * 1000)
        model[2 * MIB + 9000 : 2 * MIB + 12000] = b"new" * 1000
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "write_metadata", full)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        disk.sync()
        content = image.read_bytes()
        assert struct.unpack_from(">I", content, 56) == (1,)  # whatever the checksum says
        assert Blktap(content).disk() == model


def test_a_wrong_checksum_stays_wrong(tmp_path: Path, rng: random.Random) -> None:
    """blktap does not look for its short cut then; nobody has asked us to vouch for the image."""
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model)
    content = bytearray(image.read_bytes())
    content[52:56] = b"\1\2\3\4"
    image.write_bytes(content)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        disk.pwrite(2 * MIB, b"new")
        model[2 * MIB : 2 * MIB + 3] = b"new"
    found = Blktap(image.read_bytes())
    assert not found.valid
    assert found.disk() == model


def test_reading_changes_nothing(tmp_path: Path, rng: random.Random) -> None:
    for little in (False, True):
        image, model = tmp_path / f"{little}.qcow", sparse_content(rng)
        blktap_image(image, model, little=little)
        before = image.read_bytes(), image.stat().st_mtime_ns
        with tapcore.open(f"qcow:{image}", readonly=True) as disk:
            assert disk.pread(0, length=disk.size) == model
        assert (image.read_bytes(), image.stat().st_mtime_ns) == before


# ---- the generations of the L1 table -----------------------------------------------------------


def test_a_little_endian_l1_table_is_read_and_stays_one(tmp_path: Path, rng: random.Random) -> None:
    """From before 2008; the program that wrote it could read no other."""
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model, little=True)
    for round_number in range(3):
        with tapcore.open(f"qcow:{image}", readonly=False) as disk:
            assert disk.info()["xen"]["l1_byte_order"] == "little"
            assert disk.pread(0, length=disk.size) == model
            at = 2 * MIB + round_number * 2 * MIB + 1000
            disk.pwrite(at, b"round")
            model[at : at + 5] = b"round"
    content = image.read_bytes()
    flags, entries = struct.unpack_from(">I", content, 60)[0], len(model) // (2 * MIB) + 1
    assert flags == 1
    l1 = struct.unpack_from(f"<{entries}Q", content, L1)
    assert all(not entry % 4096 and entry < len(content) for entry in l1)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        leaf = leaf_of(disk.state)
        leaf.drv.td_resize(leaf, len(model) + 3 * MIB)
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        assert disk.pread(0, length=disk.size) == model + bytes(3 * MIB)


@pytest.mark.parametrize("flags", [1, 3, 0x02000001])
def test_a_big_endian_l1_table_is_one_whatever_the_flags_say(
    flags: int, tmp_path: Path, rng: random.Random
) -> None:
    """2008 to 2010 the flag was missing, or at the wrong place."""
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model, flags=flags)
    for _ in range(3):
        with tapcore.open(f"qcow:{image}", readonly=False) as disk:
            assert disk.pread(0, length=disk.size) == model
            disk.pwrite(3 * MIB, b"again")
            model[3 * MIB : 3 * MIB + 5] = b"again"
    assert Blktap(image.read_bytes()).flags == flags | 2


def test_a_far_too_large_l1_table_is_no_problem(tmp_path: Path, rng: random.Random) -> None:
    """From 2009 on it had as many entries as the disk has bytes; those in use are the same."""
    image, model = tmp_path / "disk.qcow", sparse_content(rng)[:MIB]
    blktap_image(image, model, first=L1 + 8 * MIB)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        assert disk.pread(0, length=disk.size) == model
        disk.pwrite(600 * KIB, b"x")
        model[600 * KIB] = ord("x")
    assert qemu_content(image) == model


def test_qemu_and_tapcore_share_a_blktap_image(tmp_path: Path, rng: random.Random) -> None:
    image, model = tmp_path / "disk.qcow", sparse_content(rng)
    blktap_image(image, model)
    for number in range(3):
        qemu_io(image, [f"write -P {number + 1} {number * 3}M 5000"])
        model[number * 3 * MIB : number * 3 * MIB + 5000] = bytes([number + 1]) * 5000
        with tapcore.open(f"qcow:{image}", readonly=False) as disk:
            assert disk.pread(0, length=disk.size) == model
            at = number * 2 * MIB + MIB + 77
            disk.pwrite(at, b"ours")
            model[at : at + 4] = b"ours"
        assert qemu_content(image) == model
        assert not walk(image.read_bytes()).problems


def test_an_emptied_blktap_image_has_no_short_cut(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.qcow"
    blktap_image(image, sparse_content(rng))
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        leaf = leaf_of(disk.state)
        leaf.drv.td_make_empty(leaf)
        size = disk.size
        assert not any(disk.pread(0, length=size))
    assert image.stat().st_size == 8192
    found = Blktap(image.read_bytes())
    assert found.min_cluster_alloc == 1
    assert not any(found.disk())
