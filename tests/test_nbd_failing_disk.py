"""A disk that fails under a running server: one error for each request, and everything goes on."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from nbd_client import EIO, READ, WRITE, Client
from served import served

from hostfs import loop_device, made_on, mounted
from peers import missing, peer

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB


@attrs.frozen
class FailingDisk:
    """A file of a file system in user space.

    Attributes:
        path: of the file.
        switch: a file; as long as it is there, nothing can be read from the disk, or written to it.
    """

    path: Path
    switch: Path


@contextmanager
def failing_disk(folder: Path, size: int) -> Iterator[FailingDisk]:
    """By nbdkit, whose filter fails requests, and nbdfuse, which shows it as a file."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse cannot be used")
    (mount := folder / "fuse").mkdir()
    switch = folder / "switch"
    fails = ["error=EIO", "error-rate=100%", f"error-file={switch}"]
    disk = [peer("nbdkit"), "-s", "--exit-with-parent", "memory", str(size), "--filter=error"]
    with subprocess.Popen([peer("nbdfuse"), str(mount), "--command", *disk, *fails]) as fuse:
        try:
            while not (mount / "nbd").exists():
                if fuse.poll() is not None:
                    missing("nbdfuse cannot mount here")
                time.sleep(0.01)
            yield FailingDisk(mount / "nbd", switch)
        finally:
            switch.unlink(missing_ok=True)
            fuse.terminate()
            fuse.wait(30)


@contextmanager
def file_on(kind: str, folder: Path) -> Iterator[tuple[Path, FailingDisk]]:
    """The failing disk itself, or a file of a file system on it."""
    with failing_disk(folder, SIZE if kind == "fuse" else 16 * MIB) as disk:
        if kind == "fuse":
            yield disk.path, disk
            return
        with loop_device(disk.path) as device:
            made_on(device)
            with mounted(kind, folder / "mnt", device) as where:
                yield where / "disk", disk


def _forget(*paths: Path) -> None:
    """Nothing of these files lies in memory any more, but what is mapped and was used."""
    for path in paths:
        fd = os.open(path, os.O_RDWR)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _bring_in(path: Path) -> None:
    """All of a file lies in memory, each page by itself."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for at in range(0, SIZE, 4 * KIB):
        os.pread(fd, 4 * KIB, at)
    os.close(fd)


@pytest.mark.parametrize("kind", ["fuse", "ext4"])
def test_each_request_gets_one_error_and_others_are_served(kind: str, tmp_path: Path) -> None:
    """Pages were seen in memory, are not there any more, and cannot be read again."""
    content = random.Random(4).randbytes(SIZE)
    other = tmp_path / "other.img"
    other.write_bytes(content)
    with file_on(kind, tmp_path) as (path, disk):
        path.touch()
        with open(path, "r+b") as file:
            file.write(content)
        words = [f"aio:{path}", f"aio:{other}", "--socket", "s"]
        with served(*words, uris=2, quiet=False, cwd=tmp_path) as server:
            with Client(server.uris[0]) as client, Client(server.uris[1]) as neighbour:
                _forget(path, disk.path)
                if kind != "fuse":
                    _bring_in(path)
                for at in range(0, SIZE, 256 * KIB):  # looked at: all around it
                    client.read(at, 4 * KIB)
                _forget(path, disk.path)
                disk.switch.touch()
                places = list(range(128 * KIB, SIZE, 256 * KIB))
                asked = [(client.send(READ, at, 4 * KIB), at) for at in places]
                assert neighbour.read(MIB, 4 * KIB) == content[MIB:][: 4 * KIB]
                answers = [client.answer(cookie).error for cookie, _ in asked]
                assert answers == [EIO] * len(places)
                assert client.parser.idle
                neighbour.write(0, b"n" * 4096)
                if kind == "fuse":  # a file system's own write-back would fail much later
                    written = client.answer(client.send(WRITE, 0, payload=b"w" * 4 * KIB))
                    assert written.error == EIO
                disk.switch.unlink()
                for at in places:
                    assert client.read(at, 4 * KIB) == content[at:][: 4 * KIB]
            assert server.process.poll() is None
