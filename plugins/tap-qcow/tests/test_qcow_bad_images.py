"""Images from strangers: every lie is an error, quickly, and costs no memory."""

import os
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import process_time

import pytest
from cputime import LENIENT

import tapcore
from qcowtools import KIB, MIB, some_content
from tap_qcow import qcow_create
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image

SIZE = 3 * MIB
HEADER = ">4sIQIIQBBHIQ"
FIELDS = {  # name: (offset, format)
    "version": (4, ">I"),
    "backing_file_offset": (8, ">Q"),
    "backing_file_size": (16, ">I"),
    "size": (24, ">Q"),
    "cluster_bits": (32, ">B"),
    "l2_bits": (33, ">B"),
    "crypt_method": (36, ">I"),
    "l1_table_offset": (40, ">Q"),
}


@contextmanager
def cheap(seconds: float = 2.0, mib: int = 64) -> Iterator[None]:
    """What is done takes little CPU time and memory."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")
    before, start = _peak(), process_time()
    yield
    took = process_time() - start
    assert took < LENIENT * seconds, f"took {took:.1f} s"
    assert _peak() - before < mib, f"took {_peak() - before} MiB"


def _peak() -> int:
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM:"))


@pytest.fixture
def image(tmp_path: Path, rng: random.Random) -> Path:
    """Some of everything: plain and compressed clusters, and holes."""
    path = tmp_path / "disk.qcow"
    tapcore.create_image(f"qcow:{path}", SIZE)
    with tapcore.open(f"qcow:{path}", readonly=False) as disk:
        disk.write_compressed(0, some_content(rng, 256 * KIB))
        disk.pwrite(1 * MIB, some_content(rng, 300 * KIB))
        disk.pwrite(SIZE - 9000, rng.randbytes(9000))
    return path


def put(image: Path, field: str, value: int) -> None:
    offset, form = FIELDS[field]
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value & ((1 << 8 * struct.calcsize(form)) - 1)))


def refused(image: Path, match: str) -> None:
    with cheap(), pytest.raises(tapcore.TapError, match=match):
        tapcore.open(f"qcow:{image}", readonly=True)
    with cheap(), pytest.raises(tapcore.TapError, match=match):
        inspect_image(f"qcow:{image}")


# ---- the header --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("version", 0, "version 0"),
        ("version", 2, "version 2"),
        ("version", 0xFFFFFFFF, "version"),
        ("backing_file_offset", 1, "parent's name outside"),
        ("backing_file_offset", 1 << 63, "parent's name outside"),
        ("size", 0, "impossible disk size"),
        ("size", 1, "impossible disk size"),
        ("size", (1 << 64) - 1, "impossible disk size"),
        ("size", 1 << 63, "impossible disk size"),
        ("size", (1 << 63) - 512, "L1 table"),
        ("size", 1 << 45, "L1 table"),
        ("size", 1 << 38, "L1 table outside"),
        ("cluster_bits", 0, "cluster size"),
        ("cluster_bits", 8, "cluster size"),
        ("cluster_bits", 17, "cluster size"),
        ("cluster_bits", 255, "cluster size"),
        ("l2_bits", 0, "L2 tables"),
        ("l2_bits", 5, "L2 tables"),
        ("l2_bits", 14, "L2 tables"),
        ("l2_bits", 255, "L2 tables"),
        ("crypt_method", 2, "encrypted in an unknown way"),
        ("crypt_method", 0xFFFFFFFF, "encrypted in an unknown way"),
        ("l1_table_offset", 0, "L1 table outside"),
        ("l1_table_offset", 47, "L1 table outside"),
        ("l1_table_offset", 1 << 40, "L1 table outside"),
        ("l1_table_offset", (1 << 64) - 8, "L1 table outside"),
    ],
)
def test_a_header_field_that_cannot_be_true(
    image: Path, field: str, value: int, match: str
) -> None:
    put(image, field, value)
    refused(image, match)


def test_cve_2014_0146_a_parents_name_that_is_too_long(image: Path) -> None:
    put(image, "backing_file_offset", 4096)
    for length in (1024, 1 << 31, 0xFFFFFFFF):
        put(image, "backing_file_size", length)
        refused(image, "too long")


def test_cve_2014_0222_an_l2_table_that_is_too_large(image: Path) -> None:
    for bits in (14, 29, 32, 61, 255):
        put(image, "l2_bits", bits)
        refused(image, "L2 tables")


def test_cve_2014_0223_a_size_that_overflows_the_l1_table(image: Path) -> None:
    """Of a sparse file as long as the table claims to be, too: that costs its owner nothing."""
    put(image, "size", (1 << 63) - (1 << 22))
    with image.open("r+b") as file:
        file.truncate(1 << 43)
    refused(image, "L1 table that is too large")
    put(image, "size", 1 << 44)
    with cheap(mib=200), tapcore.open(f"qcow:{image}", readonly=True) as disk:
        assert disk.size == 1 << 44


def test_a_parents_name_is_only_a_name(image: Path) -> None:
    """It is checked by the policy for all formats, and nothing is opened to look at it."""
    for name in ("/etc/hostname", "nbd://127.0.0.1/x", "json:{}", "../outside", "\n\x1b[2J"):
        with image.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            offset = file.tell()
            file.write(name.encode())
        put(image, "backing_file_offset", offset)
        put(image, "backing_file_size", len(name))
        assert inspect_image(f"qcow:{image}").dangerous
        with pytest.raises(tapcore.TapError):
            tapcore.open(f"qcow:{image}", readonly=True)


def test_its_own_parent(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        offset = file.tell()
        file.write(image.name.encode())
    put(image, "backing_file_offset", offset)
    put(image, "backing_file_size", len(image.name))
    with pytest.raises(tapcore.TapError, match="own ancestor"):
        tapcore.open(f"qcow:{image}", readonly=True)


def test_cut_off_files(image: Path) -> None:
    content = image.read_bytes()
    for length in (0, 1, 3, 4, 8, 47, 48, 49, 63):
        image.write_bytes(content[:length])
        with pytest.raises(tapcore.ImageFormatError):
            tapcore.open(f"qcow:{image}", readonly=True)
    for length in (600, 4096, 5000, 9000, len(content) - 100):
        image.write_bytes(content[:length])
        with tapcore.open(f"qcow:{image}", readonly=True) as disk, suppress(tapcore.TapError):
            disk.pread(0, length=disk.size)


# ---- the tables --------------------------------------------------------------------------------


def entries_of(content: bytes | bytearray) -> tuple[int, list[int]]:
    """Where the L1 table, and where the L2 tables lie."""
    (l1,) = struct.unpack_from(">Q", content, 40)
    return l1, [offset for offset in struct.unpack_from(">2Q", content, l1) if offset]


@pytest.mark.parametrize(
    "value", [1, 48, 511, 4097, 1 << 40, (1 << 63) - 512, 1 << 63, (1 << 64) - 1]
)
def test_an_l1_entry_that_cannot_be_true(image: Path, value: int) -> None:
    content = bytearray(image.read_bytes())
    l1, _ = entries_of(content)
    struct.pack_into(">Q", content, l1, value)
    image.write_bytes(content)
    for readonly in (True, False):
        with cheap(), tapcore.open(f"qcow:{image}", readonly=readonly) as disk:
            with pytest.raises(tapcore.IOFailedError):
                disk.pread(0, length=4096)
            disk.pread(2 * MIB, length=4096)
            with pytest.raises(tapcore.TapError):
                list(disk.extents())
            if not readonly:
                with pytest.raises(tapcore.IOFailedError):
                    disk.pwrite(0, b"x" * 4096)
                disk.pwrite(2 * MIB, b"x" * 4096)


@pytest.mark.parametrize("value", [1, 48, 511, 4097, 1 << 40, (1 << 63) - 512])
def test_an_l2_entry_that_cannot_be_true(image: Path, value: int) -> None:
    content = bytearray(image.read_bytes())
    _, (l2, _) = entries_of(content)
    struct.pack_into(">Q", content, l2 + 8 * 256, value)
    image.write_bytes(content)
    with cheap(), tapcore.open(f"qcow:{image}", readonly=False) as disk:
        for call in (lambda: disk.pread(MIB, length=4096), lambda: disk.pwrite(MIB + 10, b"x")):
            with pytest.raises(tapcore.IOFailedError):
                call()
        disk.pread(MIB + 4096, length=4096)
        disk.pwrite(MIB + 4096, b"x" * 4096)


def test_a_cluster_over_the_l1_table(image: Path) -> None:
    """What a guest writes there would be tables the next time."""
    content = bytearray(image.read_bytes())
    _, (l2, _) = entries_of(content)
    where = len(content)
    content += content[48:64].ljust(4096, b"\0")
    struct.pack_into(">Q", content, 40, where)
    for entry in (where, where - 4096 + 512):
        struct.pack_into(">Q", content, l2 + 8 * 256, entry)
        image.write_bytes(content)
        with (
            tapcore.open(f"qcow:{image}", readonly=False) as disk,
            pytest.raises(tapcore.IOFailedError),
        ):
            disk.pwrite(MIB, b"x" * 4096)
        assert image.read_bytes() == content


def test_a_compressed_cluster_that_is_a_bomb_or_damaged(image: Path, rng: random.Random) -> None:
    bomb = zlib.compressobj(9, wbits=-15)
    stream = bomb.compress(bytes(64 * MIB)) + bomb.flush()
    content = bytearray(image.read_bytes())
    _, (l2, _) = entries_of(content)
    at = len(content)
    for number, payload in enumerate((stream[:4000], rng.randbytes(3000), b"\0" * 50, b"")):
        entry = 1 << 63 | len(payload) << (63 - 12) | (at if payload else 1 << 45)
        struct.pack_into(">Q", content, l2 + 8 * number, entry)
        content += payload
        at += len(payload)
    image.write_bytes(content)
    with cheap(), tapcore.open(f"qcow:{image}", readonly=False) as disk:
        assert disk.pread(0, length=4096) == bytes(4096)  # as much as a cluster, of the 64 MiB
        for number in (1, 2, 3):
            with pytest.raises(tapcore.IOFailedError):
                disk.pread(number * 4096, length=4096)
            with pytest.raises(tapcore.IOFailedError):
                disk.pwrite(number * 4096 + 5, b"x")
            disk.pwrite(number * 4096, b"y" * 4096)
            assert disk.pread(number * 4096, length=4096) == b"y" * 4096


@pytest.mark.parametrize("kind", ["image", "child", "blktap"])
def test_damaged_images_never_do_anything_but_fail(
    kind: str,
    image: Path,
    tmp_path: Path,
    rng: random.Random,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Header and tables changed anywhere; opened, read, written, grown, emptied."""
    if kind == "child":
        (tmp_path / "parent.raw").write_bytes(some_content(rng, 2 * MIB))
        image.unlink()
        tapcore.create_image(f"qcow:{image}", SIZE, parent="aio:parent.raw")
    elif kind == "blktap":
        qcow_create(str(image), SIZE, None, 1)
    if kind != "image":
        with tapcore.open(f"qcow:{image}", readonly=False) as disk:
            for _ in range(10):
                disk.pwrite(rng.randrange(SIZE - 9000), rng.randbytes(9000))
    good = image.read_bytes()
    for _ in range(150):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            _damage(content, good, rng)
        image.write_bytes(content)
        with cheap(), suppress(tapcore.TapError, OSError):
            _work(image, rng)
        assert not [record for record in caplog.records if record.exc_info], caplog.text


def _damage(content: bytearray, good: bytes, rng: random.Random) -> None:
    l1, tables = entries_of(good)
    places = [rng.randrange(0, 64, 4), l1 + 8 * rng.randrange(2)]
    places += [offset + 8 * rng.randrange(512) for offset in tables]
    at = min(rng.choice(places), len(content) - 8)
    value = rng.choice(
        (
            rng.getrandbits(64),
            rng.randrange(len(content)) & -512,
            rng.randrange(len(content)),
            1 << 63 | rng.randrange(4096) << 51 | rng.randrange(len(content)),
            l1,
            rng.choice(tables),
            (1 << rng.randrange(64)) - 1,
        )
    )
    struct.pack_into(">Q", content, at, value)


def _work(image: Path, rng: random.Random) -> None:
    with suppress(tapcore.TapError):
        inspect_image(f"qcow:{image}")
    with tapcore.open(f"qcow:{image}", keys=b"key", readonly=False) as disk:
        with suppress(tapcore.TapError):
            for _ in zip(range(1000), disk.extents(), strict=False):
                pass
        for _ in range(6 if disk.size else 0):
            at = rng.randrange(min(disk.size, SIZE))
            length = min(rng.choice((512, 5000, 60000)), disk.size - at)
            with suppress(tapcore.TapError):
                disk.pread(at, length=length)
            with suppress(tapcore.TapError):
                disk.pwrite(at, rng.randbytes(length))
        with suppress(tapcore.TapError):
            disk.zero(0, length=min(disk.size, MIB))
        with suppress(tapcore.TapError):
            disk.resize(disk.size // 512 * 512 + rng.choice((512, MIB)))
        leaf = disk.state.disks
        with suppress(tapcore.TapError, OSError):
            if rng.random() < 0.3:
                leaf.drv.td_make_empty(leaf)


def test_no_descriptor_is_left(image: Path) -> None:
    put(image, "cluster_bits", 3)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with suppress(tapcore.TapError):
            tapcore.open(f"qcow:{image}", readonly=False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_damaged_image_is_not_repaired_and_not_touched(image: Path, rng: random.Random) -> None:
    """The format counts nothing that could be compared: check says so, and writes nothing."""
    good = image.read_bytes()
    for _ in range(20 * int(os.environ.get("TAPCORE_THOROUGH") or 1)):
        content = bytearray(good)
        for _ in range(rng.choice((1, 2, 5))):
            _damage(content, good, rng)
        image.write_bytes(content)
        for repair in ("leaks", "all"):
            with pytest.raises(tapcore.TapError, match=r"disk\.qcow"):
                check_image(f"qcow:{image}", repair=repair)
        assert image.read_bytes() == content
