"""Where new blocks go, and what becomes of their space when something fails."""

import errno
import os
import random
from pathlib import Path

import pytest

import tapcore
from tapcore import ImageFile, TapError
from vhdtools import KIB, MIB, content_of, make, problems, qemu_content

BLOCK = 64 * KIB


def test_the_space_of_a_write_that_failed_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of what it wrote can be seen, by QEMU either, which does not look at bitmaps."""
    image = tmp_path / "disk.vhd"
    make(image, MIB, BLOCK)
    write = ImageFile.write_blocking

    def half(file: ImageFile, offset: int, buf: memoryview) -> int:
        write(file, offset, buf[: len(buf) // 2])
        return -errno.EIO

    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "write_now", lambda *_: None)
            patch.setattr(ImageFile, "write_blocking", half)
            with pytest.raises(TapError):
                disk.pwrite(5 * BLOCK, b"lost" * 4 * KIB)
        length = image.stat().st_size
        disk.sync()
        disk.pwrite(BLOCK, b"kept")
        assert image.stat().st_size == length
    want = bytearray(MIB)
    want[BLOCK : BLOCK + 4] = b"kept"
    assert content_of(image) == want
    assert qemu_content(image) == want
    assert not problems(image.read_bytes(), closed=True)


def test_a_footer_that_is_perhaps_not_safe_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel could not write it has forgotten."""
    image = tmp_path / "disk.vhd"
    make(image, MIB, BLOCK)
    written: list[tuple[int, bytes]] = []
    write = ImageFile.write_metadata

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        written.append((offset, bytes(data)))
        write(file, offset, data)

    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "flush_blocking", lambda _: -errno.EIO)
            with pytest.raises(TapError):
                disk.sync()
        monkeypatch.setattr(ImageFile, "write_metadata", noted)
        disk.sync()
        length = image.stat().st_size
    assert (length - 512, image.read_bytes()[-512:]) in written


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_flush_that_failed_is_done_again(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    image = tmp_path / "disk.vhd"
    make(image, MIB, BLOCK)
    content = rng.randbytes(MIB)
    flush, calls = os.fdatasync, []

    def fails_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(fd)

    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        disk.pwrite(0, content[: 3 * BLOCK])
        monkeypatch.setattr(os, "fdatasync", fails_once)
        failed = 0
        for end in range(4 * BLOCK, MIB + 1, 4 * BLOCK):
            disk.pwrite(0, content[:end])
            try:
                disk.sync()
            except TapError:
                failed += 1
    assert failed == 1
    assert content_of(image) == content
    assert not problems(image.read_bytes(), closed=True)


def test_blocks_begin_at_pages(tmp_path: Path) -> None:
    image = tmp_path / "disk.vhd"
    tapcore.create_image(f"vhd:{image}", 20 * MIB)
    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        for at in (17, 3, 9):
            disk.pwrite(at * MIB, b"x" * 512)
        disk.sync()
        places = [each.offset for each in disk.extents() if each.kind == "data"]
    assert [place % 4096 for place in places] == [0, 0, 0]


def test_behind_two_tib_there_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.vhd"
    make(image, MIB, BLOCK)
    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        leaf = disk.state.disks
        assert leaf is not None
        disk.pwrite(0, b"x" * 512)
        monkeypatch.setattr(leaf.private, "end", (0xFFFFFFFF << 9) - BLOCK)
        with pytest.raises(TapError, match="No space left"):
            disk.pwrite(BLOCK, b"x")
        monkeypatch.undo()
    assert not problems(image.read_bytes(), closed=True)
