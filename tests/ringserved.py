"""A ring server in a thread, and front ends that come to its socket by hand."""

import contextlib
import fcntl
import json
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from nbdwire import opened
from ringbench import content

from tapcore.engine import Engine, engine_of
from tapcore.engine.loop import Loop
from tapcore.nbd.listening import UnixAddress, listen
from tapcore.nbd.polled import PolledDisk
from tapcore.ring.server import RingServer

SIZE = 1 << 20
SEAL = fcntl.F_SEAL_SHRINK


@attrs.define(eq=False)
class Here:
    """A ring server in a thread.

    Attributes:
        path: of its socket.
        content: of the disk at the beginning.
    """

    path: str
    content: bytes
    engine: Engine
    server: RingServer
    loop: Loop
    _asked: int

    def call(self, work: Callable[[], Any]) -> Any:
        """Have something done in its thread, between two batches."""
        done = threading.Event()
        found: list[Any] = []

        def do() -> None:
            self.loop.after_batch.remove(do)
            found.append(work())
            done.set()

        self.loop.after_batch.append(do)
        os.eventfd_write(self._asked, 1)
        assert done.wait(30)
        return found[0]


@contextlib.contextmanager
def served(folder: Path, handle: str = "sync", **options: Any) -> Iterator[Here]:
    """Serve a raw disk of random content; everything is closed at the end, and looked at."""
    data = content(1, SIZE)
    image = folder / "disk.img"
    image.write_bytes(data)
    fds = descriptors()
    with opened(f"{handle}:{image}") as state:
        loop, engine = Loop(), engine_of(state)
        asked = os.eventfd(0, os.EFD_NONBLOCK)
        loop.add(asked, lambda _: os.eventfd_read(asked))
        disk = PolledDisk(loop, engine)
        path = str(folder / "ring")
        server = RingServer(engine, loop, listen(UnixAddress(path)), **options)
        loop.after_batch.insert(0, engine.turn)
        here = Here(path, data, engine, server, loop, asked)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield here
        finally:
            here.call(server.close)
            here.call(loop.stop)
            thread.join(30)
            disk.unpoll()
            loop.close()
            os.close(asked)
    # descriptors of strangers are closed elsewhere, perhaps a little later
    for other in threading.enumerate():
        if other.name == "close":
            other.join(30)
    assert descriptors() == fds


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


def connected(path: str) -> socket.socket:
    """A socket to the server, past the server's first line."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(path)
    assert json.loads(sock.recv(4096))["tapcore-ring"] == 1
    return sock


CHOICE = {
    "tapcore-ring": 1,
    "protocol": "x86_64-abi",
    "ring-page-order": 0,
    "data-pages": 8,
}


def memory(length: int = 9 << 12, seals: int = SEAL, flags: int = 0) -> int:
    fd = os.memfd_create("front", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, length)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def events() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK)


def opened_null() -> int:
    return os.open("/dev/null", os.O_RDWR)


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def read_only_memory() -> int:
    fd = memory()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def tmpfs_file() -> int:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, 9 << 12)
    return fd


def send(sock: socket.socket, line: bytes, fds: list[int]) -> dict[str, Any]:
    """Send a line with descriptors, which are closed here; what is said of it ({}: nothing)."""
    if fds:
        socket.send_fds(sock, [line], fds)
    else:
        sock.sendall(line)
    for fd in fds:
        os.close(fd)
    try:
        said = sock.recv(4096)
    except ConnectionResetError:
        return {}
    found: dict[str, Any] = json.loads(said) if said else {}
    return found


def line(**changes: Any) -> bytes:
    return json.dumps(CHOICE | changes).encode() + b"\n"


def raw_ring(here: Here) -> tuple[socket.socket, memoryview, int, int]:
    """Connected by hand: the socket, the memory, and the two eventfds."""
    sock = connected(here.path)
    fd, kick, call = memory(), events(), events()
    view = memoryview(mmap.mmap(fd, 9 << 12))
    view[:16] = (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(4) + b"\1\0\0\0"
    assert send(sock, line(), [fd, os.dup(kick), os.dup(call)])["state"] == "connected"
    return sock, view, kick, call
