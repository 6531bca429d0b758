"""Files from strangers cost little, and are never a traceback; what is refused is said in words."""

import os
import random
import resource
import struct
import subprocess
from pathlib import Path

import pytest
from cputime import CpuTime

import tapcore
from peers import peer
from tapcore import CacheMode, ImageFormatError, ImageLockedError, NotSupportedError, TapError
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image
from vhdxtools import (
    KIB,
    MIB,
    bat_of,
    content_of,
    header_of,
    make,
    metadata_of,
    poke,
    sealed,
)

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
HEADERS, TABLES, METADATA = (64 * KIB, 128 * KIB), (192 * KIB, 256 * KIB), (2 * MIB,)
ITEMS = 2 * MIB + 64 * KIB

FIELDS = {  # structure, offset in it, kind
    "sequence": (HEADERS, 8, "<Q"),
    "log id": (HEADERS, 48, "<Q"),
    "log version": (HEADERS, 64, "<H"),
    "version": (HEADERS, 66, "<H"),
    "log length": (HEADERS, 68, "<I"),
    "log offset": (HEADERS, 72, "<Q"),
    "regions": (TABLES, 8, "<I"),
    "bat id": (TABLES, 16, "<I"),
    "bat offset": (TABLES, 32, "<Q"),
    "bat length": (TABLES, 40, "<I"),
    "bat required": (TABLES, 44, "<I"),
    "metadata id": (TABLES, 48, "<I"),
    "metadata offset": (TABLES, 64, "<Q"),
    "metadata length": (TABLES, 72, "<I"),
    "metadata signature": (METADATA, 0, "<Q"),
    "items": (METADATA, 10, "<H"),
    "first item id": (METADATA, 32, "<I"),
    "first item offset": (METADATA, 48, "<I"),
    "first item length": (METADATA, 52, "<I"),
    "first item flags": (METADATA, 56, "<I"),
    "second item id": (METADATA, 64, "<I"),
    "block size": ((ITEMS,), 0, "<I"),
    "flags": ((ITEMS,), 4, "<I"),
    "size": ((ITEMS,), 8, "<Q"),
    "sector": ((ITEMS,), 16, "<I"),
    "physical sector": ((ITEMS,), 20, "<I"),
}
SEALED: dict[tuple[int, ...], int] = {HEADERS: 4 * KIB, TABLES: 64 * KIB}


def change(path: Path, field: str, number: int) -> None:
    """Let a field be a number in every copy of its structure, with the right checksum."""
    copies, at, kind = FIELDS[field]
    for copy in copies:
        content = bytearray(path.read_bytes()[copy : copy + SEALED.get(copies, 4 * KIB)])
        content[at : at + struct.calcsize(kind)] = struct.pack(kind, number)
        poke(path, copy, sealed(bytes(content)) if copies in SEALED else bytes(content))


@pytest.mark.parametrize(
    ("field", "number", "error", "text"),
    [
        ("version", 2, NotSupportedError, "is a VHDX of version 2"),
        ("log id", 1, None, ""),
        ("log offset", 100, ImageFormatError, "a log at an impossible place"),
        ("log length", 100, ImageFormatError, "a log at an impossible place"),
        ("log offset", 2 * MIB, ImageFormatError, "structures that lie over each other"),
        ("log length", 2 * MIB, ImageFormatError, "structures that lie over each other"),
        ("regions", 0, ImageFormatError, "no block table, or no metadata"),
        ("regions", 1, ImageFormatError, "no block table, or no metadata"),
        ("regions", 3, ImageFormatError, "a region at an impossible place"),
        ("regions", 5000, ImageFormatError, "no region table whose checksum is right"),
        ("bat id", 1, NotSupportedError, "a region that is not known here"),
        ("bat offset", 0, ImageFormatError, "a region at an impossible place"),
        ("bat offset", 3 * MIB + 512, ImageFormatError, "a region at an impossible place"),
        ("bat offset", 2 * MIB, ImageFormatError, "structures that lie over each other"),
        ("bat offset", 1 << 50, ImageFormatError, "was cut: a region lies past the end"),
        ("bat length", 0, ImageFormatError, "a region at an impossible place"),
        ("metadata offset", 512 * MIB, ImageFormatError, "was cut: a region lies past the end"),
        ("metadata signature", 0, ImageFormatError, "damaged metadata"),
        ("items", 5000, ImageFormatError, "damaged metadata"),
        ("items", 2, ImageFormatError, "lacks a metadata item"),
        ("first item id", 1, NotSupportedError, "a metadata item that is not known here"),
        ("first item offset", 100, ImageFormatError, "a damaged metadata item"),
        ("first item offset", MIB - 4, ImageFormatError, "a damaged metadata item"),
        ("first item length", 4, ImageFormatError, "a damaged metadata item"),
        ("block size", 0, ImageFormatError, "an impossible block size"),
        ("block size", 3 * MIB, ImageFormatError, "an impossible block size"),
        ("block size", 1 << 29, ImageFormatError, "an impossible block size"),
        ("flags", 2, ImageFormatError, "has a parent, but does not say which"),
        ("size", 0, ImageFormatError, "an impossible size"),
        ("size", 100, ImageFormatError, "an impossible size"),
        ("size", 1 << 60, ImageFormatError, "an impossible size"),
        ("size", 1 << 40, ImageFormatError, "a block table that is too small for its disk"),
        ("sector", 1024, ImageFormatError, "sectors of an impossible size"),
    ],
)
def test_what_cannot_be_is_said(
    field: str, number: int, error: type[TapError] | None, text: str, tmp_path: Path
) -> None:
    image = tmp_path / "disk.vhdx"
    make(image, MIB)
    change(image, field, number)
    works = (content_of, lambda path: check_image(f"vhdx:{path}"))
    for work in works:
        if error is None:
            work(image)
            continue
        with pytest.raises(error, match=text):
            work(image)


def test_what_need_not_be_known_is_left_alone(tmp_path: Path, rng: random.Random) -> None:
    """A region and an item of somebody else's; also when the disk is written, and repaired."""
    image = tmp_path / "disk.vhdx"
    make(image, 3 * MIB)
    whole = image.read_bytes()
    other = struct.pack("<16sQII", b"somebody else's.", len(whole), MIB, 0)
    for at in TABLES:
        table = bytearray(whole[at : at + 64 * KIB])
        table[8:12] = struct.pack("<I", 3)
        table[80:112] = other
        poke(image, at, sealed(bytes(table)))
    entry = struct.pack("<16sIIII", b"an item of users", 80 * KIB, 100, 1, 0)
    poke(image, metadata_of(whole) + 10, struct.pack("<H", 6))
    poke(image, metadata_of(whole) + 32 + 5 * 32, entry)
    poke(image, len(whole), b"theirs" * 1000 + bytes(MIB - 6000))
    content = rng.randbytes(3 * MIB)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, content)
        disk.discard(0, length=MIB)
    poke(image, 256 * KIB, b"?")
    assert check_image(f"vhdx:{image}", repair="all").corruptions == 0
    assert content_of(image) == bytes(MIB) + content[MIB:]
    after = image.read_bytes()
    assert after[len(whole) : len(whole) + 6000] == b"theirs" * 1000
    assert struct.unpack_from("<I", after, 256 * KIB + 8) == (3,)


def _read(image: Path) -> None:
    content_of(image)


def _write(image: Path) -> None:
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(disk.size - 512, b"x" * 512)
        disk.zero(0, length=min(disk.size, MIB))


def _check(image: Path) -> None:
    check_image(f"vhdx:{image}", repair="all")


def _inspect(image: Path) -> None:
    inspect_image(f"vhdx:{image}")


def test_damage_anywhere_is_an_error_or_content(tmp_path: Path, rng: random.Random) -> None:
    """Of every field, with the checksums made right again, and of the block table."""
    image = tmp_path / "disk.vhdx"
    make(image, 4 * MIB)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(2 * MIB))
    good, said = image.read_bytes(), list[str]()
    values = (0, 1, 7, 512, MIB, 3 * MIB, 1 << 31, (1 << 32) - 1, (1 << 64) - 1)
    for _ in range(40 * THOROUGH):
        image.write_bytes(good)
        for _ in range(rng.randint(1, 2)):
            if rng.random() < 0.3:
                entry = rng.choice((rng.randrange(8), rng.getrandbits(64), 4 << 20, 1 << 40))
                entry = (entry | rng.randrange(8)) & (1 << 64) - 1
                poke(image, 3 * MIB + 8 * rng.randrange(4), entry.to_bytes(8, "little"))
                continue
            field = rng.choice(list(FIELDS))
            size = struct.calcsize(FIELDS[field][2])
            change(image, field, rng.choice((*values, rng.getrandbits(64))) % (1 << 8 * size))
        for work in rng.sample((_read, _write, _check, _inspect), 2):
            try:
                work(image)
            except TapError as exc:
                said.append(exc.message)
    assert len(set(said)) >= 8
    assert not any("\n" in text for text in said)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_block_at_a_place_that_no_file_has(tmp_path: Path, cache: CacheMode) -> None:
    image = tmp_path / "disk.vhdx"
    make(image, 4 * MIB)
    poke(image, 3 * MIB, ((1 << 64) - MIB | 6).to_bytes(8, "little"))
    with (
        tapcore.open(f"vhdx:{image}", readonly=True, cache=cache) as disk,
        pytest.raises(TapError, match="at offset 0xfffffffffff00000, lies past the end"),
    ):
        disk.pread(0, length=4096)


def test_a_huge_table_in_a_hole_costs_little(tmp_path: Path) -> None:
    """64 TiB in blocks of 1 MiB: a block table of 512 MiB, of which nothing is stored."""
    image = tmp_path / "disk.vhdx"
    before, spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, CpuTime()
    make(image, 64 << 40)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        assert disk.pread(1 << 44, length=4096) == bytes(4096)
        disk.pwrite(1 << 45, b"content")
        assert len(list(disk.extents())) <= 4
    assert check_image(f"vhdx:{image}").allocated_clusters == 1
    assert spent.is_about(3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_blocks_that_share_one_place(tmp_path: Path) -> None:
    """A table of 1 MiB, of which every entry names the same place."""
    image = tmp_path / "disk.vhdx"
    make(image, 120 << 30)
    poke(image, 4 * MIB, b"content".ljust(MIB))
    at, length = bat_of(image.read_bytes())
    poke(image, at, (4 << 20 | 6).to_bytes(8, "little") * (length // 8))
    spent = CpuTime()
    with tapcore.open(f"vhdx:{image}", readonly=True) as disk:
        assert disk.pread(119 << 30, length=7) == b"content"
        with pytest.raises(ImageFormatError, match="many more blocks than there is room for"):
            list(disk.extents())
    with (
        tapcore.open(f"vhdx:{image}", readonly=False) as disk,
        pytest.raises(TapError, match="lies where another block lies"),
    ):
        disk.pwrite(0, b"x")
    assert spent.is_about(5)


def test_a_tebibyte_of_nothing_is_converted_at_once(tmp_path: Path) -> None:
    image, copy = tmp_path / "disk.vhdx", tmp_path / "copy.vhdx"
    tapcore.create_image(f"vhdx:{image}", 1 << 40)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(1 << 39, b"in the middle")
    spent = CpuTime()
    tapcore.convert_image(f"vhdx:{image}", f"vhdx:{copy}")
    assert spent.is_about(2)
    with tapcore.open(f"vhdx:{copy}", readonly=True) as disk:
        assert disk.pread(1 << 39, length=13) == b"in the middle"


def test_one_header_is_enough(tmp_path: Path, rng: random.Random) -> None:
    """The other one is said to be damaged, and repaired, or written anew with the first change."""
    image = tmp_path / "disk.vhdx"
    make(image, MIB)
    at, _ = header_of(image.read_bytes())
    poke(image, at + 20, b"?")
    assert content_of(image) == bytes(MIB)
    assert [each.code for each in inspect_image(f"vhdx:{image}").findings] == ["corrupt"]
    assert check_image(f"vhdx:{image}").corruptions == 1
    assert check_image(f"vhdx:{image}", repair="all").corruptions_fixed == 1
    for copy in HEADERS:
        header = image.read_bytes()[copy : copy + 4 * KIB]
        assert sealed(header) == header
    for copy in HEADERS:
        poke(image, copy + 20, b"?")
    with pytest.raises(ImageFormatError, match="no header whose checksum is right"):
        content_of(image)


def test_locks_are_those_of_qemu(tmp_path: Path) -> None:
    image = tmp_path / "disk.vhdx"
    tapcore.create_image(f"vhdx:{image}", MIB)
    with tapcore.open(f"vhdx:{image}", readonly=False):
        with pytest.raises(ImageLockedError):
            tapcore.open(f"vhdx:{image}", readonly=False)
        words = [peer("qemu-io"), "-f", "vhdx", "-c", "write 0 512", str(image)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert "lock" in done.stderr
