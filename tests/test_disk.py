"""`tapcore.open` and `Disk`: a binary file over any image, with errors that say what is wrong."""

import errno
import gc
import io
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tapcore
from tapcore.buffers import BufferPool
from tapcore.disk import disk as disk_module

SIZE = 256 << 10
HANDLES = ["aio", "sync", "ram"]


@pytest.fixture
def content(rng: random.Random) -> bytes:
    return rng.randbytes(SIZE)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    found = tmp_path / "disk.img"
    found.write_bytes(content)
    return found


@pytest.fixture(params=HANDLES)
def disk(request: pytest.FixtureRequest, path: Path) -> Iterator[tapcore.Disk]:
    with tapcore.open(f"{request.param}:{path}", readonly=False) as found:
        yield found


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- a file ------------------------------------------------------------------------------------


def test_it_is_a_raw_binary_file(disk: tapcore.Disk, content: bytes) -> None:
    assert isinstance(disk, io.RawIOBase)
    assert (disk.readable(), disk.writable(), disk.seekable()) == (True, True, True)
    assert (disk.tell(), disk.read(10), disk.tell()) == (0, content[:10], 10)
    assert disk.seek(-5, os.SEEK_END) == SIZE - 5
    assert (disk.read(), disk.read(), disk.read(1)) == (content[-5:], b"", b"")
    assert disk.seek(1000) == 1000
    assert disk.seek(-1, os.SEEK_CUR) == 999
    buf = bytearray(5000)
    assert disk.readinto(buf) == 5000
    assert (buf, disk.tell()) == (content[999:5999], 5999)
    assert disk.write(b"hello") == 5
    assert disk.tell() == 6004
    disk.seek(5998)
    assert disk.read(7) == content[5998:5999] + b"hello" + content[6004:6005]
    assert disk.readall() == content[6005:]


def test_the_end_of_a_disk_is_the_end_of_the_file(disk: tapcore.Disk, content: bytes) -> None:
    assert disk.seek(SIZE + 100) == SIZE + 100
    assert disk.read(10) == b""
    with pytest.raises(tapcore.OutOfRangeError, match="end of the disk"):
        disk.write(b"x")
    disk.seek(SIZE - 3)
    assert disk.write(b"abcdef") == 3
    assert disk.write(b"") == 0
    assert disk.pread(SIZE - 4, length=100) == content[-4:-3] + b"abc"
    with pytest.raises(tapcore.UsageError, match="before the start"):
        disk.seek(-1)
    with pytest.raises(tapcore.UsageError, match="whence 7"):
        disk.seek(0, 7)
    with pytest.raises(tapcore.NotSupportedError, match="resize"):
        disk.truncate(0)


def test_it_can_be_wrapped_and_copied(disk: tapcore.Disk, content: bytes) -> None:
    target = io.BytesIO()
    shutil.copyfileobj(disk, target)
    assert target.getvalue() == content
    disk.seek(0)
    reader = io.BufferedReader(disk, 4096)
    assert reader.peek(1)[:1] == content[:1]
    reader.seek(777)
    assert reader.read(100_000) == content[777 : 777 + 100_000]
    reader.detach()
    writer = io.BufferedWriter(disk, 4096)
    writer.seek(501)
    for n in range(3000):
        writer.write(bytes([n % 256]) * 3)
    writer.flush()
    writer.detach()
    expected = b"".join(bytes([n % 256]) * 3 for n in range(3000))
    assert disk.pread(501, length=9000) == expected


def test_buffers_of_any_kind_are_taken(disk: tapcore.Disk) -> None:
    import array

    words = array.array("I", range(1024))
    assert disk.pwrite(100, memoryview(words)) == 4096
    back = array.array("I", bytes(4096))
    assert disk.pread_into(100, memoryview(back)) == 4096
    assert back == words
    disk.seek(0)
    assert disk.readinto(array.array("Q", bytes(64))) == 64


# ---- positioned calls --------------------------------------------------------------------------


def test_ranges_past_the_end(disk: tapcore.Disk, content: bytes) -> None:
    assert disk.pread(SIZE - 10, length=100) == content[-10:]
    assert disk.pread(SIZE + 10, length=100) == b""
    for call in (
        lambda: disk.pwrite(SIZE - 1, b"ab"),
        lambda: disk.pwrite(SIZE + 1, b""),
        lambda: disk.zero(SIZE - 1, length=2),
        lambda: disk.discard(SIZE, length=1),
        lambda: list(disk.extents(SIZE, length=1)),
    ):
        with pytest.raises(tapcore.OutOfRangeError) as caught:
            call()
        assert (caught.value.image, caught.value.errno) == (disk.name, errno.EINVAL)
    refused_calls: tuple[Callable[[], object], ...] = (
        lambda: disk.pread(-1, length=5),
        lambda: disk.pread(0, length=-5),
        lambda: disk.pwrite(-1, b"ab"),
        lambda: disk.zero(0, length=-1),
        lambda: disk.discard(-512, length=512),
        lambda: disk.extents(-1),
    )
    for refused_call in refused_calls:
        with pytest.raises(tapcore.UsageError, match="must not be negative") as refused:
            refused_call()
        assert (refused.value.image, refused.value.errno) == (disk.name, errno.EINVAL)
    assert disk.pread(0, length=SIZE) == content


def test_calls_larger_than_one_request_are_split(
    disk: tapcore.Disk, content: bytes, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "_MAX_CALL", 10_000)
    assert disk.pread(5, length=SIZE) == content[5:]
    new = rng.randbytes(SIZE - 7)
    assert disk.pwrite(7, new) == len(new)
    assert disk.pread(0, length=SIZE) == content[:7] + new
    with pytest.raises(tapcore.OutOfRangeError):  # as a whole: not half of it is written
        disk.pwrite(100, bytes(SIZE))
    assert disk.pread(0, length=SIZE) == content[:7] + new


def test_extents_of_a_part(disk: tapcore.Disk) -> None:
    runs = list(disk.extents(1000, length=3000))
    assert (runs[0].start, runs[-1].end) == (1000, 4000)
    assert list(disk.extents(SIZE)) == list(disk.extents(5, length=0)) == []


def test_resize(disk: tapcore.Disk, content: bytes) -> None:
    disk.resize(SIZE + 1024)
    assert (disk.size, disk.pread(SIZE - 1, length=2000)) == (
        SIZE + 1024,
        content[-1:] + bytes(1024),
    )
    disk.pwrite(SIZE + 1023, b"!")
    disk.resize(SIZE)
    disk.resize(SIZE + 1024)
    assert disk.pread(SIZE, length=1024) == bytes(1024)
    for size, why in ((-512, "at least one sector"), (1000, "multiple of 512")):
        with pytest.raises(tapcore.UsageError, match=why):
            disk.resize(size)
    with pytest.raises(tapcore.TapError) as caught:
        disk.resize(1 << 62)
    assert caught.value.image == disk.name
    assert (disk.size, disk.pread(0, length=SIZE)) == (SIZE + 1024, content)
    disk.pwrite(0, b"alive")


# ---- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", HANDLES)
def test_read_only(handle: str, path: Path, content: bytes) -> None:
    before = path.stat()
    with tapcore.open(f"{handle}:{path}", readonly=True) as disk:
        assert (disk.read_only, disk.writable()) == (True, False)
        for call in (
            lambda: disk.pwrite(0, b"x"),
            lambda: disk.write(b"x"),
            lambda: disk.pwrite(0, b""),
            lambda: disk.write(b""),
            lambda: disk.zero(0, length=512),
            lambda: disk.zero(0, length=0),
            lambda: disk.discard(0, length=512),
            lambda: disk.resize(512),
        ):
            with pytest.raises(tapcore.ReadOnlyError) as caught:
                call()
            assert isinstance(caught.value, io.UnsupportedOperation)
            assert (caught.value.image, caught.value.errno) == (disk.name, errno.EROFS)
        disk.sync()
        assert disk.read() == content
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_closed_disk_says_so(disk: tapcore.Disk) -> None:
    assert not disk.closed
    disk.close()
    disk.close()
    disk.flush()
    assert disk.closed
    assert "closed" in repr(disk)
    for call in (
        lambda: disk.read(1),
        lambda: disk.pread(0, length=0),
        lambda: disk.pread(SIZE, length=1),
        lambda: disk.pwrite(0, b"x"),
        lambda: disk.pwrite(0, b""),
        lambda: disk.tell(),
        lambda: disk.seek(0),
        lambda: disk.sync(),
        lambda: disk.zero(0, length=0),
        lambda: disk.resize(512),
        lambda: disk.info(),
        lambda: list(disk.extents()),
        lambda: disk.__enter__(),
    ):
        with pytest.raises(tapcore.ClosedError, match="closed") as caught:
            call()
        assert isinstance(caught.value, (ValueError, OSError))
        assert caught.value.errno == errno.EBADF


def test_the_context_manager_closes_also_after_an_error(path: Path) -> None:
    before = open_fds()
    with pytest.raises(ZeroDivisionError), tapcore.open(f"aio:{path}", readonly=False) as disk:
        raise ZeroDivisionError
    assert (disk.closed, open_fds()) == (True, before)


def test_it_describes_itself(path: Path) -> None:
    with tapcore.open(f"sync:{path}", readonly=False) as disk:
        assert (disk.handle, disk.name, disk.size) == ("sync", f"sync:{path}", SIZE)
        assert repr(disk) == f"<tapcore.Disk 'sync:{path}' {SIZE} bytes>"


def test_without_a_handle_a_disk_is_only_read(path: Path, content: bytes) -> None:
    with tapcore.open(str(path), readonly=True) as disk:
        assert (disk.handle, disk.read(16)) == ("aio", content[:16])
    with pytest.raises(tapcore.UsageError, match="HANDLE:PATH"):
        tapcore.open(str(path), readonly=False)


# ---- threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["aio", "aio none", "sync", "ram"])
def test_threads_may_share_a_disk(kind: str, path: Path, rng: random.Random) -> None:
    handle, _, direct = kind.partition(" ")
    with tapcore.open(
        f"{handle}:{path}", cache="none" if direct else "writeback", readonly=False
    ) as disk:
        part = SIZE // 4
        finals = [b""] * 4
        seeds = [rng.random() for _ in range(4)]
        errors: list[BaseException] = []

        def work(n: int) -> None:
            mine = random.Random(seeds[n])
            model = bytearray(disk.pread(n * part, length=part))
            try:
                for _ in range(60):
                    length = mine.randrange(1, 3000)
                    at = mine.randrange(part - length)
                    model[at : at + length] = new = mine.randbytes(length)
                    disk.pwrite(n * part + at, new)
                    assert disk.pread(n * part, length=part) == model
                disk.sync()
            except BaseException as exc:
                errors.append(exc)
            finals[n] = bytes(model)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert disk.pread(0, length=SIZE) == b"".join(finals)


def test_reads_of_one_file_position_are_each_given_out_once(path: Path, content: bytes) -> None:
    with tapcore.open(f"aio:{path}", readonly=True) as disk:
        pieces: list[bytes] = []

        def work() -> None:
            while piece := disk.read(1024):
                pieces.append(piece)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(pieces) == sorted(content[at : at + 1024] for at in range(0, SIZE, 1024))


def test_the_buffer_pool_survives_another_thread_that_takes_the_last() -> None:
    """Disks of different threads share it: between a look and the taking it may be emptied."""

    class Emptied(list[memoryview]):
        def __bool__(self) -> bool:
            return True

    pool = BufferPool()
    pool._free = [Emptied() for _ in pool._free]
    for size in (1, 4096, 4097, 1 << 18, 1 << 20):
        assert len(pool.take(size)) >= size


# ---- what is taken is given back ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["aio", "aio none", "sync", "ram"])
def test_many_opens_leave_no_descriptor(kind: str, path: Path) -> None:
    handle, _, direct = kind.partition(" ")
    before = open_fds()
    for n in range(30):
        readonly = n % 2 == 0
        with tapcore.open(
            f"{handle}:{path}", readonly=readonly, cache="none" if direct else "writeback"
        ) as disk:
            disk.pread(n, length=5000)
            if not readonly:
                disk.pwrite(SIZE - 3, b"end")
                disk.discard(0, length=8192)
            list(disk.extents())
    assert open_fds() == before


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("kind", ["aio", "aio none", "sync", "ram"])
def test_what_cannot_be_opened_is_named_and_leaves_no_descriptor(kind: str, tmp_path: Path) -> None:
    handle, _, direct = kind.partition(" ")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    make_socket(tmp_path / "socket")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    cases = {
        tmp_path / "folder": ("directory", errno.EISDIR),
        tmp_path / "fifo": ("pipe", errno.EINVAL),
        tmp_path / "socket": ("socket", errno.ENXIO),
        Path("/dev/zero"): ("character device", errno.EINVAL),
        tmp_path / "missing": ("No such file" if handle != "ram" else "neither", errno.ENOENT),
        tmp_path / "dangling": ("No such file", errno.ENOENT),
        tmp_path / "loop": ("symbolic links", errno.ELOOP),
        tmp_path / "file" / "below": ("ot a directory" if handle != "ram" else "neither", 0),
        tmp_path / ("n" * 300): ("name too long" if handle != "ram" else "neither", 0),
    }
    before = open_fds()
    for name, (words, code) in cases.items():
        for readonly in (True, False):
            with pytest.raises(tapcore.TapError) as caught:
                tapcore.open(
                    f"{handle}:{name}",
                    readonly=readonly,
                    cache="none" if direct else "writeback",
                )
            exc = caught.value
            assert words in exc.message
            assert exc.image == str(name)
            assert exc.errno in (code, errno.EINVAL) or not code
            assert "\n" not in str(exc)
    assert open_fds() == before


@pytest.fixture
def in_the_open() -> Iterator[Path]:
    """A file that others reach: pytest shuts the folder of its own ones at each start of a run."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "disk.img")
        path.write_bytes(bytes(SIZE))
        yield path


def test_no_permission(in_the_open: Path) -> None:
    """As another user, where the tests run as root, to whom everything is permitted."""
    path = in_the_open
    if os.geteuid():
        path.chmod(0o444)
        with pytest.raises(tapcore.ImageOpenError, match="Permission denied for writing"):
            tapcore.open(f"aio:{path}", readonly=False)
        path.chmod(0)
        with pytest.raises(tapcore.ImageOpenError, match="Permission denied"):
            tapcore.open(f"aio:{path}", readonly=True)
        return
    program = f"""
import os, tapcore
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for handle in ("aio", "sync"):
    for readonly in (False, True):
        before = len(os.listdir("/proc/self/fd"))
        try:
            tapcore.open(f"{{handle}}:{path}", readonly=readonly)
        except tapcore.ImageOpenError as exc:
            print(exc.errno, exc)
        assert len(os.listdir("/proc/self/fd")) == before
"""
    path.chmod(0)

    def run() -> list[str]:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import json, tapcore.disk, tap_aio.driver, tap_sync.driver\n" + program,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert run() == [f"13 {path}: Permission denied"] * 4
    path.chmod(0o444)
    assert (
        run()
        == [
            f"13 {path}: Permission denied for writing (readonly=True would open it)",
        ]
        * 2
    )


def test_a_disk_that_nobody_closes_closes_itself(path: Path) -> None:
    before = open_fds()
    disk = tapcore.open(f"aio:{path}", readonly=False)
    disk.pwrite(0, b"kept")
    del disk
    gc.collect()
    assert open_fds() == before
    assert path.read_bytes()[:4] == b"kept"
