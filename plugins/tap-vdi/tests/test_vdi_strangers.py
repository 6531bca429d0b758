"""Files from strangers cost little, and are never a traceback; what is refused is said in words."""

import os
import random
import resource
import struct
import subprocess
from pathlib import Path

import attrs
import pytest
from cputime import CpuTime

import tapcore
from peers import peer
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DYNAMIC, FIXED
from tapcore import ImageFormatError, ImageLockedError, NotSupportedError, TapError
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image
from vditools import KIB, MIB, content_of, set_entry

FIELDS = {  # offsets of numbers in the header, and their kinds
    "signature": (0x40, "<I"),
    "version": (0x44, "<I"),
    "header size": (0x48, "<I"),
    "type": (0x4C, "<I"),
    "map": (0x154, "<I"),
    "data": (0x158, "<I"),
    "size": (0x170, "<Q"),
    "block size": (0x178, "<I"),
    "extra": (0x17C, "<I"),
    "blocks": (0x180, "<I"),
    "stored": (0x184, "<I"),
}

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


def poke(path: Path, field: str, number: int) -> None:
    at, kind = FIELDS[field]
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(kind, number))


@pytest.mark.parametrize(
    ("field", "number", "error", "text"),
    [
        ("signature", 0, ImageFormatError, "is not a VDI image"),
        ("version", 2, NotSupportedError, "is a VDI of version 0.2, of before VirtualBox 1.0"),
        ("version", 0x20000, NotSupportedError, "is a VDI of version 2.0: VirtualBox reads it"),
        ("header size", 0x100, ImageFormatError, "has an impossible header"),
        ("type", 3, NotSupportedError, "keeps what is to be undone"),
        ("type", 9, NotSupportedError, "of an unknown type"),
        ("type", 4, ImageFormatError, "has a parent, but does not say which"),
        ("map", 100, ImageFormatError, "block map that is not between"),
        ("map", 0xFFFFFF00, ImageFormatError, "block map that is not between"),
        ("data", 100, ImageFormatError, "block map that is not between"),
        ("data", 2 * MIB + 100, NotSupportedError, "do not begin at whole sectors"),
        ("extra", 100, NotSupportedError, "do not begin at whole sectors"),
        ("size", 0, ImageFormatError, "has an impossible size"),
        ("size", 1 << 50, ImageFormatError, "has an impossible size"),
        ("block size", 0, ImageFormatError, "has an impossible block size"),
        ("block size", MIB + 512, ImageFormatError, "has an impossible block size"),
        ("block size", 1 << 31, ImageFormatError, "has an impossible block size"),
        ("blocks", 0, ImageFormatError, "has an impossible size"),
        ("blocks", 0xFFFFFFFF, NotSupportedError, "more than 67108864"),
        ("blocks", 1 << 26, ImageFormatError, "block map that is not between"),
    ],
)
def test_what_cannot_be_is_said(
    field: str, number: int, error: type[TapError], text: str, tmp_path: Path
) -> None:
    image = tmp_path / "disk.vdi"
    write_image(str(image), new_header(MIB, MIB, DYNAMIC))
    poke(image, field, number)
    with pytest.raises(error, match=text):
        content_of(image)
    with pytest.raises(error, match=text):
        check_image(f"vdi:{image}")


def test_damage_anywhere_is_an_error_or_content(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    write_image(str(image), new_header(MIB, 16 * KIB, DYNAMIC))
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(MIB // 2))
    good, seen, said = image.read_bytes(), set(), list[str]()
    places = [*range(0x40, 0x1C8, 4), *range(MIB, MIB + 256, 4)]
    for _ in range(120 * THOROUGH):
        bad = bytearray(good)
        at = rng.choice(places)
        bad[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), rng.randbytes(4), b"\0\0\0\x80"))
        image.write_bytes(bad)
        for work in (_read, _write, _check, _inspect):
            try:
                work(image)
            except TapError as exc:
                seen.add(type(exc).__name__)
                said.append(exc.message)
    assert len(seen) >= 3
    assert not any("\n" in text for text in said)


def _read(image: Path) -> None:
    content_of(image)


def _write(image: Path) -> None:
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(disk.size - 512, b"x" * 512)
        disk.zero(0, length=min(disk.size, MIB))


def _check(image: Path) -> None:
    check_image(f"vdi:{image}", repair="all")


def _inspect(image: Path) -> None:
    inspect_image(f"vdi:{image}")


def test_a_huge_map_in_a_hole_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 million entries of zero: all blocks at one place, in a file of some kilobytes."""
    monkeypatch.setattr("tap_vdi.blockmap._MOST_AGAIN", 1 << 12)  # not 65,536, to be quick
    image = tmp_path / "disk.vdi"
    header = attrs.evolve(new_header(1 << 45, MIB, DYNAMIC))
    image.touch()
    with open(image, "r+b") as file:
        file.write(header.pack())
        file.truncate(header.data_at + MIB)
    before, spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, CpuTime()
    with tapcore.open(f"vdi:{image}", readonly=True) as disk:
        assert disk.pread(1 << 44, length=4096) == bytes(4096)
        with pytest.raises(ImageFormatError, match="many more blocks than there is room for"):
            list(disk.extents())
    with pytest.raises(ImageFormatError, match="many more blocks than there is room for"):
        check_image(f"vdi:{image}")
    with (
        tapcore.open(f"vdi:{image}", readonly=False) as disk,
        pytest.raises(TapError, match="many more blocks than there is room for"),
    ):
        disk.pwrite(0, b"x")
    assert spent.is_about(2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_block_at_the_largest_number(tmp_path: Path) -> None:
    image = tmp_path / "disk.vdi"
    write_image(str(image), new_header(4 * MIB, MIB, DYNAMIC))
    set_entry(image, 2, 0xFFFFFFFD)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        assert disk.pread(0, length=MIB) == bytes(MIB)
        with pytest.raises(TapError, match="past the end of the file"):
            disk.pread(2 * MIB, length=512)
        with pytest.raises(TapError, match="past the end of the file"):
            disk.pwrite(0, b"x")
    found = inspect_image(f"vdi:{image}").findings
    assert [each.code for each in found] == ["content-lost"]


def test_a_tebibyte_of_nothing_is_converted_at_once(tmp_path: Path) -> None:
    image, copy = tmp_path / "disk.vdi", tmp_path / "copy.vdi"
    tapcore.create_image(f"vdi:{image}", 1 << 40)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(1 << 39, b"in the middle")
    spent = CpuTime()
    tapcore.convert_image(f"vdi:{image}", f"vdi:{copy}")
    assert spent.is_about(2)
    with tapcore.open(f"vdi:{copy}", readonly=True) as disk:
        assert disk.pread(1 << 39, length=13) == b"in the middle"


def test_a_fixed_image_of_a_tebibyte_has_few_extents(tmp_path: Path) -> None:
    image = tmp_path / "disk.vdi"
    write_image(str(image), new_header(1 << 40, MIB, FIXED))
    spent = CpuTime()
    with tapcore.open(f"vdi:{image}", readonly=True) as disk:
        assert len(list(disk.extents())) < 100
    assert spent.is_about(3)


def test_locks_are_those_of_qemu(tmp_path: Path) -> None:
    image = tmp_path / "disk.vdi"
    tapcore.create_image(f"vdi:{image}", MIB)
    with tapcore.open(f"vdi:{image}", readonly=False):
        with pytest.raises(ImageLockedError):
            tapcore.open(f"vdi:{image}", readonly=False)
        words = [peer("qemu-io"), "-f", "vdi", "-c", "write 0 512", str(image)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert "lock" in done.stderr


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_what_is_not_laid_out_for_o_direct_is_read_through_the_page_cache(
    sector_size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What QEMU has made, say: content and table in one page meet in the page cache."""
    monkeypatch.setattr("tapcore.files.blockingfile.logical_block_size", lambda _: sector_size)
    for data_at, said in ((MIB, 0), (MIB + 512, 1)):
        image = tmp_path / f"{said}.vdi"
        header = new_header(MIB, 64 * KIB, DYNAMIC)
        write_image(str(image), attrs.evolve(header, map_at=512, data_at=data_at))
        caplog.clear()
        with tapcore.open(f"vdi:{image}", readonly=True, cache="none") as disk:
            assert disk.pread(0, length=MIB) == bytes(MIB)
        assert len(caplog.records) == said
    assert caplog.text.count("is not laid out for O_DIRECT; using the page cache") == 1
