"""A full or failing host: the errno reaches the request that it hit, and nothing else changes."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapcore
from diskmodel import run_all
from hostfs import loop_device, mounted, small_ext4
from rawdisks import KINDS, open_raw
from tapcore.engine import READ, WRITE, Request

ROOM = 2 << 20
BIG = 8 << 20


@pytest.fixture(params=["tmpfs", "ext4"])
def small_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with room for some 2 MiB, not a whole number of them."""
    if request.param == "tmpfs":
        with mounted("tmpfs", tmp_path / "mnt", options=f"size={ROOM + (64 << 10)}") as where:
            yield where
    else:
        with small_ext4(tmp_path, ROOM + (1 << 20)) as where:
            yield where


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_file_system_fails_the_write_and_leaves_the_disk_usable(
    kind: str, small_place: Path, rng: random.Random
) -> None:
    path = small_place / "disk.img"
    path.touch()
    os.truncate(path, BIG)
    kept = rng.randbytes(256 << 10)
    with open_raw(kind, path) as disk:
        disk.pwrite(0, kept)
        with pytest.raises(tapcore.IOFailedError, match="No space left") as caught:
            disk.pwrite(1 << 20, b"x" * (6 << 20))
        assert (caught.value.errno, caught.value.image) == (errno.ENOSPC, disk.name)
        assert disk.pread(0, length=len(kept)) == kept
        disk.discard(1 << 20, length=7 << 20)
        disk.pwrite(4 << 20, kept)
        assert disk.pread(4 << 20, length=len(kept)) == kept


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_requests_that_do_not_fit_fail(kind: str, small_place: Path) -> None:
    path = small_place / "disk.img"
    path.touch()
    os.truncate(path, BIG)
    with open_raw(kind, path) as disk:
        content = memoryview(bytearray(b"q" * (64 << 10)))
        done: list[Request] = []
        run_all(
            disk,
            [
                Request(WRITE, at, len(content), content, done.append)
                for at in range(0, BIG, 64 << 10)
            ],
        )
        assert {r.status for r in done} == {0, -errno.ENOSPC}
        good = [r for r in done if r.status == 0]
        assert len(done) == BIG >> 16
        for request in good:
            assert disk.pread(request.offset, length=request.length) == content


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_an_image_that_cannot_be_reserved_is_not_left_behind(
    small_place: Path, preallocation: str
) -> None:
    path = small_place / "disk.img"
    free = os.statvfs(small_place)
    just_too_large = free.f_bavail * free.f_frsize + 12345  # only the end of it does not fit
    for size in (BIG, just_too_large):
        with pytest.raises(OSError, match="No space left"):
            tapcore.create_host_file(str(path), size, preallocation)
        assert not path.exists()


@pytest.fixture
def half_readable(tmp_path: Path, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """A block device of 1 MiB whose second half gives read errors, and its first half."""
    backing = tmp_path / "backing.img"
    content = rng.randbytes(1 << 20)
    backing.write_bytes(content)
    with loop_device(backing) as device:
        os.truncate(backing, 512 << 10)
        yield device, content[: 512 << 10]


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_error_hits_only_the_requests_that_touch_it(
    kind: str, half_readable: tuple[str, bytes]
) -> None:
    device, content = half_readable
    with open_raw(kind, device, readonly=True) as disk:
        for offset, length in ((768 << 10, 4096), (508 << 10, 8192), (900_000, 7)):
            with pytest.raises(tapcore.IOFailedError) as caught:
                disk.pread(offset, length=length)
            assert caught.value.errno == errno.EIO
        assert disk.pread(0, length=512 << 10) == content

        done: list[Request] = []
        bufs = [memoryview(bytearray(32 << 10)) for _ in range(32)]
        run_all(
            disk,
            [Request(READ, n << 15, 32 << 10, buf, done.append) for n, buf in enumerate(bufs)],
        )
        assert sorted(r.offset >> 15 for r in done if r.status == 0) == list(range(16))
        assert {r.status for r in done if r.offset >> 15 >= 16} == {-errno.EIO}
        assert b"".join(bufs[:16]) == content


@pytest.mark.parametrize("kind", ["aio", "sync"])
def test_a_flush_that_fails_is_reported_by_sync(kind: str, tmp_path: Path) -> None:
    """Writes that the page cache took cannot be stored: the flush says so, and close lets go."""
    with mounted("tmpfs", tmp_path / "mnt", options="size=1m") as where:
        backing = where / "backing.img"
        backing.touch()
        os.truncate(backing, 4 << 20)
        with loop_device(backing) as device:
            before = len(os.listdir("/proc/self/fd"))
            disk = open_raw(kind, device)
            disk.pwrite(0, b"x" * (4 << 20))
            with pytest.raises(tapcore.IOFailedError, match="flush failed") as caught:
                disk.sync()
            assert caught.value.errno in (errno.EIO, errno.ENOSPC)
            disk.pwrite(0, b"y" * (4 << 20), fua=False)
            with pytest.raises(tapcore.IOFailedError, match="flush failed"):
                disk.close()
            assert disk.closed
            assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_close_lets_go_of_everything_when_the_last_flush_fails(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))

    def fails(fd: int) -> None:
        raise OSError(errno.EDQUOT, "full")

    before = len(os.listdir("/proc/self/fd"))
    disk = open_raw(kind, path)
    disk.pwrite(0, b"x" * 512)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(tapcore.IOFailedError) as caught:
            disk.pwrite(512, b"x" * 512, fua=True)
        assert caught.value.errno == errno.EDQUOT
        with pytest.raises(tapcore.IOFailedError) as caught:
            disk.close()
    assert (caught.value.errno, disk.closed) == (errno.EDQUOT, True)
    assert len(os.listdir("/proc/self/fd")) == before
    open_raw(kind, path).close()  # the lock is gone too


@pytest.mark.parametrize("kind", KINDS)
def test_a_flush_fails_once_for_an_error_that_has_passed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush that met it says so; what is written and flushed afterwards is stored."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "gone")

    with open_raw(kind, path) as disk:
        disk.pwrite(0, b"x" * 4096)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
            with pytest.raises(tapcore.IOFailedError):
                disk.pwrite(4096, b"y" * 4096, fua=True)
        disk.pwrite(0, b"z" * 8192, fua=True)
        disk.sync()
    assert path.read_bytes()[:8193] == b"z" * 8192 + b"\0"


def test_a_disk_in_memory_has_nothing_that_a_flush_could_fail_for() -> None:
    with tapcore.open("ram:1M", readonly=False) as disk:
        disk.pwrite(0, b"x" * 512)
        disk.sync()
        assert disk.pread(0, length=512) == b"x" * 512
