"""Differencing images: names and ids of parents, and blocks that are stored in part."""

import os
import random
import shutil
import struct
from pathlib import Path
from uuid import UUID

import pytest

import tapcore
from tap_vhdx.create import create
from tap_vhdx.locator import linkages, pack_locator, read_locator
from tap_vhdx.parentnames import names_to_record
from tapcore import DiskId, ImageFormatError, NotSupportedError, TapError, UsageError, from_windows
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image
from vhdxtools import (
    KIB,
    MIB,
    content_of,
    dissect_content,
    libvhdi_content,
    make,
    metadata_of,
    poke,
    problems,
    some_content,
    store_in_part,
)

SIZE = 6 * MIB


def family(folder: Path, rng: random.Random, size: int = SIZE, **options: str) -> bytes:
    """`base.vhdx` with content, and `child.vhdx` without any."""
    content = some_content(rng, size)
    make(folder / "base.vhdx", size, **options)
    with tapcore.open(f"vhdx:{folder}/base.vhdx", readonly=False) as disk:
        disk.pwrite(0, content)
    block = {"block_size": options.get("block_size", "1M")}
    make(folder / "child.vhdx", size, "base.vhdx", **block)
    return content


@pytest.mark.parametrize("logical", [512, 4096])
def test_blocks_that_are_stored_in_part(logical: int, tmp_path: Path, rng: random.Random) -> None:
    """Read as by others; what is written to them makes them whole."""
    below = family(tmp_path, rng, logical_sector=str(logical))
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    want = bytearray(below)
    for block in (0, 1, 4):
        mine, stored = rng.randbytes(MIB), [rng.random() < 0.5 for _ in range(MIB // logical)]
        stored[: 8 * 20] = [True] * 160
        store_in_part(child, block, stored, mine, logical)
        for number, there in enumerate(stored):
            if there:
                part = number * logical
                at = block * MIB + part
                want[at : at + logical] = mine[part : part + logical]
    assert content_of(child) == want
    assert dissect_content(child) == want
    assert libvhdi_content(child, base) == want
    assert check_image(f"vhdx:{child}").corruptions == 0
    with tapcore.open(f"vhdx:{child}", readonly=False) as disk:
        for _ in range(8):
            at, length = rng.randrange(SIZE), rng.choice((1, 512, 5000, 300 * KIB))
            want[at : at + length] = rng.randbytes(length)
            del want[SIZE:]
            disk.pwrite(at, want[at : at + length])
        at = rng.randrange(5 * MIB)
        disk.zero(at, length=MIB)
        want[at : at + MIB] = bytes(MIB)
    assert content_of(child) == want
    assert dissect_content(child) == want
    assert libvhdi_content(child, base) == want
    assert check_image(f"vhdx:{child}", repair="leaks").corruptions == 0
    assert content_of(child) == want
    assert not problems(child.read_bytes(), closed=False)


def test_a_chain(tmp_path: Path, rng: random.Random) -> None:
    """With work in each, and zeroes over a parent's content.

    Not by libvhdi, which takes the parent's content for that of a block of zeroes (20260901).
    """
    family(tmp_path, rng)
    leaf, flat = tmp_path / "leaf.avhdx", tmp_path / "flat.vhdx"
    for name in (tmp_path / "child.vhdx", leaf):
        if name == leaf:
            make(leaf, SIZE, "child.vhdx")
        with tapcore.open(f"vhdx:{name}", readonly=False) as disk:
            for _ in range(6):
                at = rng.randrange(disk.size // 512) * 512
                disk.pwrite(at, rng.randbytes(min(30 * KIB, disk.size - at)))
            disk.zero(2 * MIB + 512, length=2 * MIB)
            disk.discard(5 * MIB, length=MIB)
    want = content_of(leaf)
    assert dissect_content(leaf) == want
    tapcore.convert_image(f"vhdx:{leaf}", f"vhdx:{flat}")
    assert content_of(flat) == want == dissect_content(flat)


def test_a_parent_that_was_changed_is_refused(tmp_path: Path, rng: random.Random) -> None:
    below = family(tmp_path, rng)
    tapcore.open(f"vhdx:{tmp_path}/base.vhdx", readonly=False).close()  # nothing was written
    check_image(f"vhdx:{tmp_path}/base.vhdx", repair="leaks")
    assert content_of(tmp_path / "child.vhdx") == below
    with tapcore.open(f"vhdx:{tmp_path}/base.vhdx", readonly=False) as disk:
        disk.pwrite(0, b"x")
    with pytest.raises(ImageFormatError, match="another image, or was changed after"):
        content_of(tmp_path / "child.vhdx")


def test_the_other_linkage_is_as_good(tmp_path: Path, rng: random.Random) -> None:
    below = family(tmp_path, rng)
    child = tmp_path / "child.vhdx"
    content = child.read_bytes()
    at = content.index("parent_linkage".encode("utf-16-le"))
    value = content.index("{".encode("utf-16-le"), at)
    guid = content[value : value + 76]
    pairs = {
        "parent_linkage": "{00000000-0000-0000-0000-000000000001}",
        "parent_linkage2": guid.decode("utf-16-le").upper(),
        "relative_path": "base.vhdx",
    }
    _record(child, pack_locator(pairs))
    assert content_of(child) == below


def test_zeroes_are_no_linkage() -> None:
    """Which is what Hyper-V writes in place of the second one."""
    pairs = {
        "parent_linkage": "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}",
        "parent_linkage2": "{00000000-0000-0000-0000-000000000000}",
    }
    assert linkages(pairs) == [UUID("83ed0ec3-24c8-49a6-a959-5e4bf1288bfb")]
    with pytest.raises(ImageFormatError, match="does not say which"):
        linkages({"parent_linkage": pairs["parent_linkage2"]})


def _record(child: Path, locator: bytes) -> None:
    """Let an image have another parent locator."""
    content = child.read_bytes()
    metadata = metadata_of(content)
    entry = content.index(bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c"), metadata)
    (at,) = struct.unpack_from("<I", content, entry + 16)
    poke(child, metadata + at, locator)
    poke(child, entry + 20, struct.pack("<I", len(locator)))


@pytest.mark.parametrize(
    ("pairs", "error", "text"),
    [
        ({"relative_path": "base.vhdx"}, ImageFormatError, "does not say which"),
        (
            {"parent_linkage": "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}"},
            ImageFormatError,
            "does not say where it is",
        ),
        (
            {"parent_linkage": "no guid", "relative_path": "base.vhdx"},
            ImageFormatError,
            "does not say which",
        ),
    ],
)
def test_what_a_locator_may_lack(
    pairs: dict[str, str],
    error: type[TapError],
    text: str,
    tmp_path: Path,
    rng: random.Random,
) -> None:
    family(tmp_path, rng)
    _record(tmp_path / "child.vhdx", pack_locator(pairs))
    with pytest.raises(error, match=text):
        content_of(tmp_path / "child.vhdx")
    inspect_image(f"vhdx:{tmp_path}/child.vhdx")


def test_a_damaged_locator_is_said(rng: random.Random) -> None:
    good = pack_locator({"parent_linkage": "{x}", "relative_path": "b"})
    assert read_locator(good) == {"parent_linkage": "{x}", "relative_path": "b"}
    said = set()
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            read_locator(bytes(bad[: rng.randrange(len(bad) + 1)]))
        except (ImageFormatError, NotSupportedError) as exc:
            said.add(exc.message)
    assert len(said) > 1


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (".\\base.vhdx", "base.vhdx"),
        ("..\\a\\base.vhdx", "../a/base.vhdx"),
        ("\\\\?\\C:\\vm\\base.vhdx", "base.vhdx"),
        ("C:\\vm\\base.vhdx", "base.vhdx"),
        ("\\\\?\\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\\vm\\base.vhdx", "base.vhdx"),
        ("\\\\server\\share\\base.vhdx", "base.vhdx"),
        ("/vm/base.vhdx", "/vm/base.vhdx"),
    ],
)
def test_names_of_windows(name: str, path: str) -> None:
    assert from_windows(name) == path


@pytest.mark.parametrize("name", ["a\\b.vhdx", "C:x", "a\udcff.vhdx"])
def test_names_that_cannot_be_recorded(name: str) -> None:
    with pytest.raises(UsageError, match="cannot record the name"):
        names_to_record(name, "/vm")


def test_a_moved_family_is_found(tmp_path: Path, rng: random.Random) -> None:
    below = family(tmp_path, rng)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("base.vhdx", "child.vhdx"):
        shutil.move(tmp_path / name, other / name)
    assert content_of(other / "child.vhdx") == below


def test_what_is_no_vhdx_is_no_parent(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    for handle in ("aio", ""):
        with pytest.raises(UsageError, match=r"must be a VHDX|is not a VHDX"):
            create(str(tmp_path / "child.vhdx"), MIB, DiskId("disk.raw", handle), {})
    make(tmp_path / "base.vhdx", MIB)
    with pytest.raises(UsageError, match="a fixed VHDX cannot have a parent"):
        make(tmp_path / "child.vhdx", MIB, "base.vhdx", subformat="fixed")
    assert sorted(os.listdir(tmp_path)) == ["base.vhdx", "disk.raw"]


def test_blocks_that_are_too_large_to_be_copied_are_only_read(
    tmp_path: Path, rng: random.Random
) -> None:
    below = family(tmp_path, rng, block_size="64M")
    child = tmp_path / "child.vhdx"
    assert content_of(child) == below
    with (
        tapcore.open(f"vhdx:{child}", readonly=False) as disk,
        pytest.raises(TapError, match="blocks of 64 MiB, which would be copied whole"),
    ):
        disk.pwrite(0, b"x")


def test_a_child_keeps_its_size(tmp_path: Path, rng: random.Random) -> None:
    family(tmp_path, rng)
    with (
        tapcore.open(f"vhdx:{tmp_path}/child.vhdx", readonly=False) as disk,
        pytest.raises(NotSupportedError, match="keeps its size"),
    ):
        disk.resize(SIZE + MIB)
