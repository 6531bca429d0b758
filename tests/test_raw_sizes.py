"""Plain files of every size: odd ends, no content at all, holes, and files that change under us."""

import errno
import os
import random
from pathlib import Path

import pytest

import tapcore
from rawdisks import KINDS, open_raw

pytestmark = pytest.mark.parametrize("kind", KINDS)

ODD = (1, 511, 513, 1000, 3000, 4095, 4097, 65_537, 1_000_001)


def make(path: Path, rng: random.Random, size: int) -> bytes:
    content = rng.randbytes(size)
    path.write_bytes(content)
    return content


def blocks(path: Path) -> int:
    """KiB that the file takes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # delayed allocation is over
        return os.fstat(fd).st_blocks // 2
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", ODD)
def test_the_last_sector_is_filled_up_with_zeroes(
    kind: str, size: int, tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "disk.img"
    content = make(path, rng, size)
    before = path.stat()
    with open_raw(kind, path) as disk:
        assert disk.size == (size + 511) // 512 * 512
        assert disk.pread(0, length=disk.size) == content + bytes(disk.size - size)
        assert disk.pread(size - 1, length=600) == content[-1:] + bytes(disk.size - size)
        assert disk.pread(disk.size - 1, length=1) == (content[-1:] if size % 512 == 0 else b"\0")
        runs = list(disk.extents())
        assert sum(run.length for run in runs) == disk.size
        assert {run.kind for run in runs} == {"data"}
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, before.st_mtime_ns)


@pytest.mark.parametrize("size", ODD)
def test_writing_in_the_tail_keeps_every_other_byte(
    kind: str, size: int, tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "disk.img"
    expected = bytearray(make(path, rng, size))
    with open_raw(kind, path) as disk:
        expected += bytes(disk.size - size)
        for offset in {disk.size - 1, size - 1, max(size - 600, 0)}:
            disk.pwrite(offset, b"\xaa")
            expected[offset] = 0xAA
            assert disk.pread(0, length=disk.size) == expected
    assert path.read_bytes() == expected


@pytest.mark.parametrize("unmap", [True, False])
@pytest.mark.parametrize("size", [1000, 3000, 5000, 1_000_001])
def test_zeroes_reach_the_end_of_a_tail_that_was_just_written(
    kind: str, size: int, unmap: bool, tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "disk.img"
    make(path, rng, size)
    with open_raw(kind, path) as disk:
        unit = disk.state.sector_size
        last = (disk.size - 1) // unit * unit
        for content in (b"\xff", bytearray(b"\xff")):  # the second can be written in place
            disk.pwrite(last, content * (disk.size - last))
            disk.zero(last, length=disk.size - last, unmap=unmap)
            assert disk.pread(last, length=disk.size - last) == bytes(disk.size - last)


def test_an_empty_file_is_a_disk_without_sectors(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.img"
    path.touch()
    with open_raw(kind, path) as disk:
        assert (disk.size, disk.read(), list(disk.extents())) == (0, b"", [])
        with pytest.raises(tapcore.OutOfRangeError):
            disk.pwrite(0, b"x")
        disk.sync()
        disk.resize(1 << 20)
        disk.pwrite(4096, b"x" * 4096)
        assert disk.pread(4095, length=4098) == b"\0" + b"x" * 4096 + b"\0"
    assert path.stat().st_size == 1 << 20


def test_what_was_cut_off_by_another_is_an_error_to_read_and_write(
    kind: str, tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "disk.img"
    content = make(path, rng, 256 << 10)
    with open_raw(kind, path) as disk:
        os.truncate(path, 64 << 10)
        for offset, length in ((64 << 10, 4096), (60 << 10, 8192), (128 << 10, 64 << 10)):
            with pytest.raises(tapcore.IOFailedError) as caught:
                disk.pread(offset, length=length)
            assert caught.value.errno == errno.EIO
        assert disk.pread(0, length=64 << 10) == content[: 64 << 10]
        for offset, length in ((128 << 10, 4096), (62 << 10, 4096), (200 << 10, 512)):
            with pytest.raises(tapcore.IOFailedError) as caught:
                disk.pwrite(offset, b"y" * length)  # the rest would read as zeroes from now on
            assert caught.value.errno == errno.EIO
        assert path.stat().st_size == 64 << 10
        disk.pwrite(0, b"y" * 4096)
        assert disk.pread(0, length=4096) == b"y" * 4096


def test_opening_reading_and_empty_writes_allocate_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    path.touch()
    os.truncate(path, 64 << 20)
    with open_raw(kind, path) as disk:
        disk.pread(0, length=4 << 20)
        disk.pwrite(1 << 20, b"")
        disk.zero(0, length=0)
        disk.discard(4096, length=0)
        disk.zero(2 << 20, length=8 << 20)
        disk.discard(0, length=disk.size)
        assert [(run.start, run.length, run.kind) for run in disk.extents()] == [
            (0, 64 << 20, "zero")
        ]
    assert blocks(path) == 0


def test_discard_and_zero_give_space_back_and_zero_without_unmap_keeps_it(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"z" * (1 << 20))
    full = blocks(path)
    with open_raw(kind, path) as disk:
        disk.discard(0, length=256 << 10)
        disk.sync()
        assert blocks(path) <= full - 250
        disk.zero(256 << 10, length=256 << 10)
        disk.sync()
        half = blocks(path)
        assert half <= full - 500
        disk.zero(512 << 10, length=512 << 10, unmap=False)
        disk.sync()
        assert blocks(path) == half
        assert disk.pread(0, length=disk.size) == bytes(1 << 20)
        disk.zero(0, length=128 << 10, unmap=False)  # reserves what had been given back
        disk.sync()
        assert blocks(path) >= half + 128


def test_a_write_into_a_hole_allocates_only_itself(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    path.touch()
    os.truncate(path, 1 << 30)
    with open_raw(kind, path) as disk:
        disk.pwrite(512 << 20, b"d" * 8192)
        data = [(run.start, run.length) for run in disk.extents() if run.kind == "data"]
        assert data == [(512 << 20, 8192)]
    assert blocks(path) <= 16


def test_extents_follow_what_is_punched_and_resized(kind: str, tmp_path: Path) -> None:
    """What was remembered as data must not hide a hole, nor reach past a new end."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * (64 << 10))

    def shape(disk: tapcore.Disk) -> list[tuple[int, int, str]]:
        return [(run.start >> 12, run.end >> 12, run.kind) for run in disk.extents()]

    with open_raw(kind, path) as disk:
        assert shape(disk) == [(0, 16, "data")]
        disk.discard(16 << 10, length=16 << 10)
        assert shape(disk) == [(0, 4, "data"), (4, 8, "zero"), (8, 16, "data")]
        disk.pwrite(16 << 10, b"y" * 4096)
        disk.sync()
        assert shape(disk) == [(0, 5, "data"), (5, 8, "zero"), (8, 16, "data")]
        disk.resize(32 << 10)
        assert shape(disk) == [(0, 5, "data"), (5, 8, "zero")]
        disk.resize(64 << 10)
        assert shape(disk) == [(0, 5, "data"), (5, 16, "zero")]
        assert disk.pread(32 << 10, length=32 << 10) == bytes(32 << 10)
