"""Block devices, sector sizes of 4096, and file systems with and without O_DIRECT as images."""

import logging
import os
import random
from pathlib import Path

import pytest

import tapcore
from diskmodel import run_all
from hostfs import loop_device, mounted, small_ext4
from rawdisks import KINDS, open_raw
from tapcore.engine import READ, WRITE, Request


def exercise(disk: tapcore.Disk, content: bytes, rng: random.Random) -> bytes:
    """Reads and writes of every alignment against a model; returns what must be there now."""
    data = bytearray(content)
    assert disk.pread(0, length=disk.size) == data
    for length in (1, 511, 512, 513, 4096, 5000, 65_536):
        for unit in (1, 512, 4096):
            offset = rng.randrange(0, disk.size - length) // unit * unit
            new = rng.randbytes(length)
            disk.pwrite(offset, new)
            data[offset : offset + length] = new
            assert disk.pread(offset, length=length) == new
    disk.zero(8192, length=16384)
    data[8192 : 8192 + 16384] = bytes(16384)
    disk.zero(40_000, length=5_000, unmap=False)
    data[40_000:45_000] = bytes(5_000)
    disk.discard(65_536, length=512)  # may do nothing here
    data[65_536 : 65_536 + 512] = disk.pread(65_536, length=512)
    disk.sync()
    assert disk.pread(0, length=disk.size) == data
    assert sum(run.length for run in disk.extents()) == disk.size
    return bytes(data)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_device_is_an_image(
    kind: str, sector_size: int, tmp_path: Path, rng: random.Random
) -> None:
    backing = tmp_path / "backing.img"
    content = rng.randbytes(256 << 10)
    backing.write_bytes(content)
    with loop_device(backing, sector_size=sector_size) as device:
        with open_raw(kind, device) as disk:
            assert disk.size == 256 << 10
            assert disk.state.sector_size == sector_size
            assert disk.info()["kind"] == "block device"
            content = exercise(disk, content, rng)
            with pytest.raises(tapcore.UsageError, match="cannot be resized"):
                disk.resize(1 << 20)
        with open_raw(kind, device, readonly=True) as disk:
            assert disk.pread(0, length=disk.size) == content
    assert backing.read_bytes() == content


@pytest.mark.parametrize("size", [1000, 5000, 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_on_a_disk_with_large_sectors(
    kind: str, size: int, tmp_path: Path, rng: random.Random
) -> None:
    with small_ext4(tmp_path, 4 << 20, sector_size=4096) as where:
        path = where / "disk.img"
        data = bytearray(rng.randbytes(size))
        path.write_bytes(data)
        with open_raw(kind, path) as disk:
            data += bytes(disk.size - size)
            assert disk.state.sector_size == (4096 if kind == "aio-direct" else 512)
            for offset in (0, 1, 512, 700, disk.size - 512, disk.size - 1):
                new = rng.randbytes(min(300, disk.size - offset))
                disk.pwrite(offset, new)
                data[offset : offset + len(new)] = new
                assert disk.pread(0, length=disk.size) == data
        assert path.read_bytes() == data


@pytest.mark.parametrize("size", [512, 1024, 4096, 64 << 10])
def test_the_unit_of_direct_io_is_the_disks(size: int, tmp_path: Path) -> None:
    """512 where that is proved to work; the end of a small file proves nothing."""
    with small_ext4(tmp_path, 4 << 20) as where:
        path = where / "disk.img"
        path.write_bytes(bytes(size))
        with open_raw("aio-direct", path, readonly=True) as disk:
            assert disk.state.sector_size == (512 if size >= 1024 else 4096)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("data", [b"", b"data"])
def test_of_a_hole_the_disk_does_not_tell_its_unit(
    data: bytes, sector_size: int, tmp_path: Path
) -> None:
    with small_ext4(tmp_path, 4 << 20, sector_size=sector_size) as where:
        path = where / "disk.img"
        with open(path, "wb") as file:
            file.truncate(1 << 20)
            file.seek(512 << 10)
            file.write(data)
        with open_raw("aio-direct", path) as disk:
            assert disk.state.sector_size == sector_size
            disk.pwrite(100, b"written")
            assert disk.pread(0, length=200) == bytes(100) + b"written" + bytes(93)


@pytest.mark.parametrize("size", [64 << 10, 5000])
def test_memory_that_is_not_aligned_is_no_obstacle(
    size: int, tmp_path: Path, rng: random.Random
) -> None:
    """Neither slices at odd addresses nor read-only memory reach the kernel as they are."""
    path = tmp_path / "disk.img"
    content = rng.randbytes(size)
    path.write_bytes(content)
    with open_raw("aio-direct", path) as disk:
        content += bytes(disk.size - size)
        memory = bytearray(3 * disk.size)
        for skew in (0, 1, 8, 511, 512, 4095):
            view = memoryview(memory)[skew : skew + disk.size]
            done: list[Request] = []
            run_all(disk, [Request(READ, 0, disk.size, view, done.append)])
            assert (done[0].status, view) == (0, content)
            content = rng.randbytes(disk.size)
            view[:] = content
            run_all(disk, [Request(WRITE, 0, disk.size, view, done.append)])
            assert done[1].status == 0
            assert disk.pread(0, length=disk.size) == content
        content = rng.randbytes(disk.size)
        run_all(disk, [Request(WRITE, 0, disk.size, memoryview(content), done.append)])
        assert disk.pread(0, length=disk.size) == content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file_system", ["ramfs", "tmpfs"])
def test_a_file_system_in_memory_has_neither_o_direct_nor_nowait(
    file_system: str, kind: str, tmp_path: Path, rng: random.Random
) -> None:
    """ramfs has neither; tmpfs got O_DIRECT with Linux 6.6."""
    with mounted(file_system, tmp_path / "mnt") as where:
        path = where / "disk.img"
        content = rng.randbytes(200 << 10)
        path.write_bytes(content)
        with open_raw(kind, path) as disk:
            content = exercise(disk, content, rng)
        assert path.read_bytes() == content


def test_without_o_direct_the_page_cache_is_used_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mounted("ramfs", tmp_path / "mnt") as where:
        path = where / "disk.img"
        path.write_bytes(bytes(4096))
        with caplog.at_level(logging.WARNING), open_raw("aio-direct", path) as disk:
            assert disk.pread(0, length=4096) == bytes(4096)
    assert "no O_DIRECT; using the page cache" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_an_image_is_named_in_either_mode(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for path, what in (
        (tmp_path / "folder", "is a directory"),
        (tmp_path / "fifo", "is a pipe"),
        (Path("/dev/null"), "is a character device"),
    ):
        for readonly in (True, False):
            with pytest.raises(tapcore.ImageOpenError, match=what):
                open_raw(kind, path, readonly=readonly)
