#!/usr/bin/env python3
"""The ring beside NBD: one server, one disk, one kind of client, by turns. See README.md here.

Both clients are Python, keep the same number of requests in flight, and put a new one in the place
of each that was answered. Neither looks at the content.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import select
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from servers import find_command

from tapcore.ring.client import RingClient

MIB = 1 << 20
BLOCK = 4096
TARGET = 1.5
"""Times the throughput of NBD: 4 KiB reads at random places, 32 in flight."""

READ, WRITE = 0, 1
MOST = 32
_NBD_REQUEST = struct.Struct(">IHHQQI")
_GOOD = b"\x67\x44\x66\x98\0\0\0\0"  # the start of a simple reply, without an error
_RING_REQUEST = struct.Struct("<BB6xQQIBB2x")


@dataclass(slots=True)
class Turn:
    """What one client did in its time."""

    requests: int
    seconds: float
    server_us: float
    client_us: float


@dataclass(slots=True)
class Way:
    """NBD or the ring, and its turns."""

    name: str
    drive: Callable[[Load], tuple[int, float]]
    turns: list[Turn] = field(default_factory=list)

    def median(self, of: Callable[[Turn], float]) -> float:
        return statistics.median(of(turn) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for."""

    operation: int
    depth: int
    seconds: float
    blocks: list[int]
    nbd: str
    ring: str


# ---- clients -----------------------------------------------------------------------------------


def _exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = sock.recv(count - len(found))
        if not part:
            raise SystemExit("the server has gone")
        found += part
    return found


def _nbd_connection(path: str) -> socket.socket:
    """Past the handshake of the default export, with simple replies."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    _exactly(sock, 18)
    sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
    _exactly(sock, 10)
    return sock


def drive_nbd(load: Load) -> tuple[int, float]:
    """Requests done, and seconds."""
    pack, blocks, done = _NBD_REQUEST.pack, load.blocks, 0
    reads = load.operation == READ
    size = 16 + BLOCK * reads
    payload = b"" if reads else os.urandom(BLOCK)
    buffer = memoryview(mmap.mmap(-1, 1 << 20))
    have = asked = 0
    with _nbd_connection(load.nbd) as sock:

        def ask(count: int) -> None:
            nonlocal asked
            parts = []
            for number in range(asked, asked + count):
                at = blocks[number % len(blocks)]
                parts.append(pack(0x25609513, 0, load.operation, number, at, BLOCK))
                if not reads:
                    parts.append(payload)
            asked += count
            sock.sendall(b"".join(parts))

        began = time.monotonic()
        end = began + load.seconds
        ask(load.depth)
        while True:
            have += sock.recv_into(buffer[have:])
            if have >= 8 and buffer[:8] != _GOOD:  # an error's reply is shorter
                raise SystemExit(f"a request has failed: {bytes(buffer[:16]).hex()}")
            count = have // size
            for at in range(0, count * size, size):
                if buffer[at : at + 8] != _GOOD:
                    raise SystemExit("a request has failed")
            rest = have - count * size
            if rest:
                buffer[:rest] = buffer[count * size : have]
            have = rest
            done += count
            now = time.monotonic()
            if now > end:
                return done, now - began
            if count:
                ask(count)


def drive_ring(load: Load) -> tuple[int, float]:
    """Requests done, and seconds."""
    pack, blocks, operation = _RING_REQUEST.pack_into, load.blocks, load.operation
    done = asked = 0
    with RingClient(load.ring) as client:
        ring = client.ring
        memory, place = ring.shared.memory, ring.place
        began = time.monotonic()
        end = began + load.seconds
        for slot in range(load.depth):
            pack(memory, place(), operation, 1, slot, blocks[slot] >> 9, slot, 0, 7)
        asked = load.depth
        awaited = max(load.depth // 4, 1)
        client.kick()
        while True:
            answers = ring.responses()
            if not answers:
                if not ring.final_check(awaited):
                    client.sleep()
                continue
            for slot, _, status in answers:
                if status:
                    raise SystemExit("a request has failed")
                at = blocks[asked % len(blocks)] >> 9
                pack(memory, place(), operation, 1, slot, at, slot, 0, 7)
                asked += 1
            done += len(answers)
            now = time.monotonic()
            if now > end:
                return done, now - began
            client.kick()


# ---- the server --------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Of all its threads. Finer than the ticks of /proc/PID/stat."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Server:
    """`tapdisk serve` with both; a context manager."""

    def __init__(self, driver: str, image: Path, folder: Path, *, writes: bool) -> None:
        command = find_command("tapdisk")
        if command is None:
            raise SystemExit("tapdisk is not installed (make install)")
        self.nbd, self.ring = str(folder / "nbd"), str(folder / "ring")
        argv = [command, "serve", "--socket", self.nbd, "--ring", self.ring, f"{driver}:{image}"]
        if not writes:
            argv.append("--read-only")
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        pipe = self._process.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], 30)[0] or not pipe.readline():
            raise SystemExit("the server did not start")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid


def take_turn(way: Way, load: Load, pid: int) -> Turn:
    server, client = cpu_seconds(pid), time.process_time()
    done, seconds = way.drive(load)
    us = 1e6 / done
    return Turn(
        done, seconds, (cpu_seconds(pid) - server) * us, (time.process_time() - client) * us
    )


def image_in(folder: Path, size: int) -> Path:
    """A raw disk of random content, in the page cache."""
    path = folder / "disk.img"
    chunk = os.urandom(MIB)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(chunk)
        os.fsync(file.fileno())
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass
    return path


def run(args: argparse.Namespace, operation: int, depth: int, folder: Path, image: Path) -> bool:
    ways = [Way("nbd", drive_nbd), Way("ring", drive_ring)]
    rng = random.Random(1)
    blocks = [rng.randrange(args.size * MIB // BLOCK) * BLOCK for _ in range(1 << 16)]
    with Server(args.driver, image, folder, writes=operation == WRITE) as server:
        load = Load(operation, depth, args.seconds, blocks, server.nbd, server.ring)
        for way in ways:  # loads what is loaded when it is first used
            take_turn(way, Load(operation, depth, 0.3, blocks, server.nbd, server.ring), server.pid)
        for _ in range(args.turns):
            for way in ways:
                way.turns.append(take_turn(way, load, server.pid))
    name = f"4k rand{'read' if operation == READ else 'write'} qd{depth}"
    print(f"{name:20}{'requests/s':>12}{'server us':>12}{'client us':>12}")
    for way in ways:
        rate = way.median(lambda turn: turn.requests / turn.seconds)
        server_us, client_us = (
            way.median(lambda turn: turn.server_us),
            way.median(lambda turn: turn.client_us),
        )
        print(f"{way.name:20}{rate:12.0f}{server_us:12.2f}{client_us:12.2f}")
    nbd, ring = ways
    pairs = [
        (b.requests / b.seconds) / (a.requests / a.seconds)
        for a, b in zip(nbd.turns, ring.turns, strict=True)
    ]
    ratio = statistics.median(pairs)
    cpu = nbd.median(lambda turn: turn.server_us) / ring.median(lambda turn: turn.server_us)
    print(
        f"{'ring / nbd':20}{ratio:12.2f}{cpu:12.2f}   (the server's CPU: nbd / ring)\n", flush=True
    )
    return ratio >= TARGET or operation == WRITE or depth != 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", default="sync", help="handle of a raw disk's driver")
    parser.add_argument("--size", type=int, default=256, metavar="MIB")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--rw", choices=["read", "write", "both"], default="both")
    parser.add_argument("--depth", type=int, nargs="*", default=[32, 1])
    parser.add_argument("--dir", default=None, help="where the disk lies")
    args = parser.parse_args()
    if not all(0 < depth <= MOST for depth in args.depth):
        parser.error(f"--depth: from 1 to {MOST}, the requests of a ring of one page")
    folder = Path(tempfile.mkdtemp(prefix="ring-", dir=args.dir))
    good = True
    try:
        image = image_in(folder, args.size * MIB)
        for operation, word in ((READ, "read"), (WRITE, "write")):
            for depth in args.depth:
                if args.rw in (word, "both"):
                    good &= run(args, operation, depth, folder, image)
    finally:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
