"""Images in use: tapcore and QEMU refuse each other's, where one of them writes."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.files.locks import being_written

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"i" * SIZE)
    return path


def locked_bytes(path: Path) -> set[int]:
    """Which bytes of a file somebody has locked, from /proc/locks."""
    inode = f":{path.stat().st_ino}"
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[-3].endswith(inode):
            assert words[1:4] == ["OFDLCK", "ADVISORY", "READ"]
            found.update(range(int(words[-2]), int(words[-1]) + 1))
    return found


def _wait_for_greeting(address: Path, process: subprocess.Popen[str]) -> None:
    """The socket is there before the image is open; the greeting comes after it."""
    deadline = time.monotonic() + 60
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        while client.connect_ex(str(address)):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert client.recv(8) == b"NBDMAGIC", process.communicate()[1]


@contextmanager
def qemu_nbd(path: Path, *options: str, form: str = "raw") -> Iterator[int]:
    """A qemu-nbd that has the image open; its process number."""
    address = path.with_suffix(".sock")
    command = [peer("qemu-nbd"), "-f", form, "-t", "-k", str(address), *options, str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for_greeting(address, process)
        yield process.pid
    finally:
        process.kill()
        process.communicate()
        address.unlink(missing_ok=True)


def qemu_io(path: Path, *options: str) -> str:
    """What qemu-io complains of when it opens the image; "" where it can."""
    command = [peer("qemu-io"), "-f", "raw", *options, "-c", "quit", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


HANDLES = pytest.mark.parametrize("handle", ["aio", "sync"])


@HANDLES
def test_our_writer_keeps_qemu_out(handle: str, image: Path) -> None:
    with tapcore.open(f"{handle}:{image}", readonly=False):
        assert 'Failed to get "write" lock' in qemu_io(image)
        for options in ((), ("-r",)):
            command = [peer("qemu-nbd"), "-f", "raw", "-k", f"{image}.sock", *options, str(image)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode, "lock" in done.stderr) == (1, True)
        convert = [peer("qemu-img"), "create", "-q", "-f", "raw", str(image), "2M"]
        done = subprocess.run(convert, capture_output=True, text=True, check=False)
        assert (done.returncode, "lock" in done.stderr) == (1, True)
    assert image.stat().st_size == SIZE
    assert qemu_io(image) == ""


def test_what_qemu_lets_look_beside_its_own_writer_may_look_beside_ours(image: Path) -> None:
    """qemu-io only reads a raw image without forbidding anything to others."""
    with qemu_nbd(image):
        beside_theirs = qemu_io(image, "-r")
    with tapcore.open(f"aio:{image}", readonly=False):
        assert qemu_io(image, "-r") == beside_theirs == ""


@HANDLES
def test_our_reader_lets_qemu_read_and_not_write(handle: str, image: Path) -> None:
    with tapcore.open(f"{handle}:{image}", readonly=True) as disk:
        assert qemu_io(image, "-r") == ""
        assert "lock" in qemu_io(image)
        with qemu_nbd(image, "-r"):
            assert disk.pread(0, length=SIZE) == b"i" * SIZE
    assert qemu_io(image) == ""


@HANDLES
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_qemus_writer_keeps_us_out_and_is_named(handle: str, cache: str, image: Path) -> None:
    if (handle, cache) == ("sync", "none"):
        handle = "aio"
    with qemu_nbd(image) as pid:
        before = len(os.listdir("/proc/self/fd"))
        for readonly in (False, True):
            with pytest.raises(tapcore.ImageLockedError) as caught:
                tapcore.open(f"{handle}:{image}", readonly=readonly, cache=cache)  # type: ignore[arg-type]
            assert caught.value.errno == errno.EAGAIN
            ending = " for writing" if readonly else ""
            assert str(caught.value) == f"{image}: is in use by qemu-nbd (process {pid}){ending}"
        assert len(os.listdir("/proc/self/fd")) == before
        with tapcore.open(f"{handle}:{image}", readonly=True, lock=False) as disk:
            assert disk.pread(0, length=4) == b"iiii"
            assert being_written(disk.state.disks.private.fd)
    tapcore.open(f"{handle}:{image}", readonly=False).close()


def test_qemus_reader_shares_with_ours_and_keeps_our_writer_out(image: Path) -> None:
    with qemu_nbd(image, "-r") as pid:
        with tapcore.open(f"aio:{image}", readonly=True) as disk:
            assert disk.pread(0, length=4) == b"iiii"
            assert not being_written(disk.state.disks.private.fd)
        with pytest.raises(
            tapcore.ImageLockedError, match=f"is in use by qemu-nbd \\(process {pid}"
        ):
            tapcore.open(f"aio:{image}", readonly=False)


def test_a_ram_disk_locks_the_file_while_it_loads_it(image: Path) -> None:
    with qemu_nbd(image):
        with pytest.raises(tapcore.ImageLockedError):
            tapcore.open(f"ram:{image}", readonly=False)
        with tapcore.open(f"ram:{image}", readonly=True, lock=False) as disk:
            assert disk.pread(0, length=SIZE) == b"i" * SIZE
    with tapcore.open(f"ram:{image}", readonly=False), tapcore.open(f"aio:{image}", readonly=False):
        pass  # loaded: the file is free again


@pytest.mark.parametrize("readonly", [False, True])
def test_the_bytes_are_those_that_qemu_locks_for_a_disk_format(
    readonly: bool, image: Path, tmp_path: Path
) -> None:
    """A raw image served by qemu-nbd takes fewer (several writers may share it there)."""
    qcow2 = tmp_path / "disk.qcow2"
    make = [peer("qemu-img"), "create", "-q", "-f", "qcow2", str(qcow2), "1M"]
    subprocess.run(make, check=True)
    options = ("-r",) if readonly else ()
    with qemu_nbd(qcow2, *options, form="qcow2"):
        theirs = locked_bytes(qcow2)
    with qemu_nbd(image, *options):
        theirs_raw = locked_bytes(image)
    with tapcore.open(f"aio:{image}", readonly=readonly):
        ours = locked_bytes(image)
    assert ours == theirs == {100, 201, 203} | (set() if readonly else {101, 103})
    assert theirs_raw <= ours


def test_two_writers_in_one_process_conflict(image: Path) -> None:
    with tapcore.open(f"aio:{image}", readonly=False) as disk:
        for handle in ("aio", "sync"):
            for readonly in (False, True):
                with pytest.raises(tapcore.ImageLockedError, match="in use by this process itself"):
                    tapcore.open(f"{handle}:{image}", readonly=readonly)
        disk.pwrite(0, b"still")
        assert locked_bytes(image) == {100, 101, 103, 201, 203}


def test_any_number_of_readers_share(image: Path) -> None:
    disks = [tapcore.open(f"{h}:{image}", readonly=True) for h in ("aio", "sync") * 4]
    with pytest.raises(tapcore.ImageLockedError):
        tapcore.open(f"aio:{image}", readonly=False)
    for disk in disks:
        disk.close()
    tapcore.open(f"aio:{image}", readonly=False).close()


def test_another_name_for_the_same_file_is_the_same_file(image: Path, tmp_path: Path) -> None:
    hard, soft = tmp_path / "hard.img", tmp_path / "soft.img"
    os.link(image, hard)
    soft.symlink_to(image)
    with tapcore.open(f"aio:{image}", readonly=False):
        for name in (hard, soft):
            with pytest.raises(tapcore.ImageLockedError):
                tapcore.open(f"sync:{name}", readonly=False)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_locks_vanish_on_close(cache: str, image: Path) -> None:
    disk = tapcore.open(f"aio:{image}", cache=cache, readonly=False)  # type: ignore[arg-type]
    disk.pwrite(SIZE - 7, b"x")
    assert locked_bytes(image)
    disk.close()
    assert locked_bytes(image) == set()


def test_locks_vanish_with_a_process_that_dies(image: Path) -> None:
    program = (
        f"import tapcore, os; d = tapcore.open('aio:{image}', readonly=False); "
        "print('open', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    with pytest.raises(tapcore.ImageLockedError, match=rf"python.* \(process {process.pid}\)"):
        tapcore.open(f"aio:{image}", readonly=False)
    process.kill()
    process.communicate()
    tapcore.open(f"aio:{image}", readonly=False).close()


def test_without_a_lock_nothing_is_locked_and_nothing_can_be_written(image: Path) -> None:
    with tapcore.open(f"aio:{image}", readonly=True, lock=False):
        assert locked_bytes(image) == set()
    with pytest.raises(tapcore.UsageError, match="only for reading"):
        tapcore.open(f"aio:{image}", lock=False, readonly=False)


def test_a_stranger_who_locked_the_whole_file_is_a_conflict_too(image: Path) -> None:
    program = f"""
import fcntl
with open("{image}", "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        for readonly in (False, True):
            with pytest.raises(tapcore.ImageLockedError, match=f"process {process.pid}"):
                tapcore.open(f"aio:{image}", readonly=readonly)
    finally:
        process.communicate("\n")


def test_a_file_system_without_locks_is_no_obstacle(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> bytes:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with tapcore.open(f"aio:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x")
