"""What `check` finds, and what it makes of it."""

import errno
import os
import random
from pathlib import Path

import attrs
import pytest

import tapcore
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DYNAMIC
from tapcore import CheckResult, ImageFormatError, LostContentError
from tapcore.tools.check import check_image
from vditools import (
    KIB,
    MIB,
    content_of,
    dissect_content,
    entries_of,
    problems,
    run,
    set_entry,
    set_stored,
    stored_of,
)

BLOCK = 64 * KIB


def image_with_content(path: Path, rng: random.Random, extra: int = 0) -> bytes:
    """Ten blocks of sixteen, with content, which is returned."""
    header = attrs.evolve(new_header(MIB, BLOCK, DYNAMIC), extra=extra)
    write_image(str(path), header)
    with tapcore.open(f"vdi:{path}", readonly=False) as disk:
        for block in rng.sample(range(16), 10):
            disk.pwrite(block * BLOCK, rng.randbytes(BLOCK))
        return disk.pread(0, length=MIB)


def check(path: Path, repair: str = "") -> CheckResult:
    return check_image(f"vdi:{path}", repair=repair)  # type: ignore[arg-type]


def counts(result: CheckResult) -> tuple[int, int, int, int]:
    return result.corruptions, result.corruptions_fixed, result.leaks, result.leaks_fixed


def test_nothing_is_wrong(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    image_with_content(image, rng)
    before = image.read_bytes()
    for repair in ("", "leaks", "all"):
        result = check(image, repair)
        assert counts(result) == (0, 0, 0, 0)
        assert (result.total_clusters, result.allocated_clusters) == (16, 10)
        assert result.image_end_offset == len(before)
        assert not result.messages
    assert image.read_bytes() == before


@pytest.mark.parametrize("extra", [0, 512])
def test_blocks_that_share_a_place(extra: int, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    image_with_content(image, rng, extra)
    stored = [at for at, entry in enumerate(entries_of(image.read_bytes())) if entry < 16]
    set_entry(image, stored[-1], entries_of(image.read_bytes())[stored[2]])
    want = content_of(image)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        with pytest.raises(tapcore.TapError, match="it can only be read until it is repaired"):
            disk.pwrite(0, b"x")
        assert disk.pread(0, length=MIB) == want
    assert counts(check(image)) == (1, 0, 1, 0)
    assert counts(check(image, "all")) == (0, 1, 0, 0)
    assert content_of(image) == want
    assert not problems(image.read_bytes(), closed=True)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x")


def test_a_block_behind_all_places(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    want = image_with_content(image, rng)
    content = image.read_bytes()
    block = entries_of(content).index(9)
    with open(image, "ab") as file:
        file.write(bytes(20 * BLOCK) + content[-BLOCK:])
    set_entry(image, block, 30)
    assert content_of(image) == want
    result = check(image)
    assert counts(result)[0] == 1
    assert result.messages == [f"block {block} lies at place 30, of 16"]
    assert counts(check(image, "all"))[:3] == (0, 1, 0)
    assert content_of(image) == want == dissect_content(image)
    assert not problems(image.read_bytes(), closed=True)


@pytest.mark.parametrize("stored", [0, 9, 17, 0xFFFFFFFF])
def test_a_header_that_counts_wrong(stored: int, tmp_path: Path, rng: random.Random) -> None:
    """QEMU would put the next block over one that there is."""
    image = tmp_path / "disk.vdi"
    want = image_with_content(image, rng)
    set_stored(image, stored)
    assert check(image).corruptions == 1
    assert counts(check(image, "all"))[:3] == (0, 1, 0)
    assert stored_of(image.read_bytes()) == 10
    assert content_of(image) == want


@pytest.mark.parametrize("stored", [0, 9, 17, 0xFFFFFFFF])
def test_a_write_lets_it_count_right(stored: int, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    image_with_content(image, rng)
    set_stored(image, stored)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(MIB))
    assert not problems(image.read_bytes(), closed=True)


def test_a_file_that_was_cut(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    want = image_with_content(image, rng)
    content = image.read_bytes()
    lost = entries_of(content).index(9)
    image.write_bytes(content[:-BLOCK])
    with pytest.raises(LostContentError):
        content_of(image)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        assert sum(each.missing for each in disk.extents()) == 1
        said = (
            f"block {lost} lies"
            if lost
            else "write failed at 0: its cluster, at offset 0x[0-9a-f]+, lies"
        )
        with pytest.raises(tapcore.TapError, match=f"{said} past the end of the file"):
            disk.pwrite(0, b"x")
    for repair in ("", "leaks", "all"):
        assert counts(check(image, repair))[:2] == (1, 0)
        assert image.stat().st_size == len(content) - BLOCK
    copy = tmp_path / "copy.raw"
    tapcore.convert_image(f"vdi:{image}", f"aio:{copy}", salvage=tapcore.Salvage())
    want = want[: lost * BLOCK] + bytes(BLOCK) + want[(lost + 1) * BLOCK :]
    assert copy.read_bytes() == want


def test_places_that_nothing_lies_in(tmp_path: Path, rng: random.Random) -> None:
    """As a crash leaves them: they are used again, or given back."""
    image = tmp_path / "disk.vdi"
    want = bytearray(image_with_content(image, rng))
    entries = entries_of(image.read_bytes())
    for place in (0, 4, 7):
        set_entry(image, entries.index(place), 0xFFFFFFFF)
        at = entries.index(place) * BLOCK
        want[at : at + BLOCK] = bytes(BLOCK)
    assert content_of(image) == want
    assert counts(check(image)) == (0, 0, 3, 0)
    at = entries.index(4) * BLOCK
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(at + 512, b"again")
    want[at + 512 : at + 517] = b"again"
    assert entries_of(image.read_bytes())[entries.index(4)] == 0
    assert content_of(image) == want
    assert counts(check(image, "leaks")) == (0, 0, 0, 2)
    assert content_of(image) == want == dissect_content(image)
    assert not problems(image.read_bytes(), closed=True)


def test_blocks_of_zeroes_are_dropped(tmp_path: Path, rng: random.Random) -> None:
    """They were discarded: VirtualBox and QEMU find no gap before, nor after."""
    image = tmp_path / "disk.vdi"
    tapcore.create_image(f"vdi:{image}", 8 * MIB)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(8 * MIB))
        disk.discard(2 * MIB, length=3 * MIB)
        disk.zero(6 * MIB, length=MIB, unmap=True)
        disk.pwrite(7 * MIB, bytes(512))
    want = content_of(image)
    assert want.count(bytes(MIB)) >= 4
    assert counts(check(image)) == (0, 0, 0, 0)
    run("qemu-img", "check", "-f", "vdi", image)
    result = check(image, "leaks")
    assert result.messages == ["4 blocks of zeroes were dropped"]
    assert image.stat().st_size == 2 * MIB + 4 * MIB
    assert content_of(image) == want == dissect_content(image)
    run("qemu-img", "check", "-f", "vdi", image)


def test_a_fixed_image_keeps_its_blocks(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    tapcore.create_image(f"vdi:{image}", 8 * MIB, options={"subformat": "fixed"})
    before = image.read_bytes()
    assert counts(check(image, "all")) == (0, 0, 0, 0)
    assert image.read_bytes() == before


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_flush_that_failed_is_done_again(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    image = tmp_path / "disk.vdi"
    header = new_header(MIB, BLOCK, DYNAMIC)
    write_image(str(image), header)
    content = rng.randbytes(MIB)
    flush, calls = os.fdatasync, []

    def fails_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(fd)

    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, content[: 3 * BLOCK])
        monkeypatch.setattr(os, "fdatasync", fails_once)
        failed = 0
        for end in range(4 * BLOCK, MIB + 1, 4 * BLOCK):
            disk.pwrite(0, content[:end])
            try:
                disk.sync()
            except tapcore.TapError:
                failed += 1
    assert failed == 1
    assert content_of(image) == content
    assert not problems(image.read_bytes(), closed=True)


def test_what_is_no_image_is_not_repaired(tmp_path: Path) -> None:
    image = tmp_path / "disk.vdi"
    image.write_bytes(bytes(4096))
    with pytest.raises(ImageFormatError, match="is not a VDI image"):
        check(image, "all")
