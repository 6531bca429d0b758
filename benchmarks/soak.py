#!/usr/bin/env python3
"""Long writes in small steps, many clients at once, beside a writer that fills the page cache.

No client may ever wait for something that does not come: where no byte moves for a while, in either
direction, the run has failed. Afterwards everything is read back. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import procs

REPOSITORY = Path(__file__).resolve().parent.parent
MIB = 1 << 20
LONGEST = 32 * MIB
"""Of one request; a longer write is several, as clients send it."""

STEP = 64 << 10
_STAMP = struct.Struct(">II")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_READ, _WRITE = 0, 1

KINDS = {
    "aio": ("aio", "writeback", ""),
    "aio-none": ("aio", "none", ""),
    "sync": ("sync", "writeback", ""),
    "ram": ("ram", "writeback", ""),
    "qcow2": ("qcow2", "writeback", ""),
    "qcow2-none": ("qcow2", "none", ""),
    "qcow": ("qcow", "writeback", ""),
    "qcow-none": ("qcow", "none", ""),
    "vmdk": ("vmdk", "writeback", ""),
    "vmdk-none": ("vmdk", "none", ""),
    "vmdk-flat": ("vmdk", "writeback", "subformat=monolithicFlat"),
    "vmdk-flat-none": ("vmdk", "none", "subformat=monolithicFlat"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What each kind of disk goes through; sizes in bytes (`beside` in MiB), times in seconds."""

    writes: int
    clients: int
    size: int
    disk: int
    beside: int
    patience: float
    pause: float
    seed: int


def block(seed: int) -> bytes:
    """What every step writes, but for its stamp."""
    return random.Random(seed).randbytes(STEP)


class Client(threading.Thread):
    """One connection, with a part of the disk of its own."""

    def __init__(self, path: str, plan: Plan, number: int) -> None:
        super().__init__(daemon=True)
        self._plan = plan
        self._block = block(plan.seed)
        self._number = number
        places = max(plan.disk // plan.size // plan.clients, 1)
        self._places = [(number * places + n) * plan.size for n in range(places)]
        self._last: dict[int, int] = {}
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(plan.patience)
        self._sock.connect(path)
        self.took: list[float] = []
        self.error = ""

    def run(self) -> None:
        try:
            self._shake_hands()
            share = range(self._number, self._plan.writes, self._plan.clients)
            for turn, write in enumerate(share):
                started = time.monotonic()
                at = self._places[turn % len(self._places)]
                self._write(at, write)
                self._last[at] = write
                self.took.append(time.monotonic() - started)
            for at, write in self._last.items():
                self._check(at, write)
        except TimeoutError:
            self.error = f"nothing moved for {self._plan.patience:g} s"
        except (OSError, ValueError) as exc:
            self.error = str(exc) or type(exc).__name__
        finally:
            self._sock.close()

    def _shake_hands(self) -> None:
        self._exactly(18)
        self._sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))  # EXPORT_NAME, no zeroes
        self._exactly(10)

    def _write(self, at: int, write: int) -> None:
        for start in range(0, self._plan.size, LONGEST):
            length = min(LONGEST, self._plan.size - start)
            self._sock.sendall(_REQUEST.pack(0x25609513, 0, _WRITE, write, at + start, length))
            for step in range(start, start + length, STEP):
                self._sock.sendall(_STAMP.pack(write, step) + self._block[_STAMP.size :])
                if self._plan.pause:
                    time.sleep(self._plan.pause)
            self._reply()

    def _check(self, at: int, write: int) -> None:
        for step in range(0, self._plan.size, STEP):
            self._sock.sendall(_REQUEST.pack(0x25609513, 0, _READ, step, at + step, STEP))
            self._reply()
            if self._exactly(STEP) != _STAMP.pack(write, step) + self._block[_STAMP.size :]:
                raise ValueError(f"wrong content at {at + step}")

    def _reply(self) -> None:
        _, error, _ = _REPLY.unpack(self._exactly(_REPLY.size))
        if error:
            raise ValueError(f"the server answered with error {error}")

    def _exactly(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count:
            data = self._sock.recv(count - len(out))
            if not data:
                raise ValueError("the server closed the connection")
            out += data
        return bytes(out)


@dataclass(slots=True)
class Beside:
    """`dd conv=fdatasync` over and over, for as long as this is open."""

    path: Path
    count: int
    rounds: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        words = ["dd", "if=/dev/zero", f"of={self.path}", "bs=1M", f"count={self.count}"]
        words.append("conv=fdatasync")
        while not self._end.is_set():
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
            self.rounds += 1

    @contextmanager
    def running(self) -> Iterator[Beside]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()
            self.path.unlink(missing_ok=True)


@contextmanager
def serving(
    command: str, kind: str, folder: Path, disk: int
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A fresh disk, served; gone at the end."""
    handle, cache, options = KINDS[kind]
    name = f"{handle}:{disk}" if handle == "ram" else f"{handle}:{folder / kind}"
    if handle != "ram":
        words = [command, "create", name, str(disk), *(["-o", options] if options else [])]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    path = str(folder / "s")
    words = [command, "serve", name, "--socket", path]
    words += ["--cache", cache] if cache != "writeback" else []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise SystemExit(f"{kind}: the server did not start")
            yield server, path
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
    for left in folder.glob(f"{kind}*"):
        left.unlink()


def soak(command: str, kind: str, plan: Plan, folder: Path) -> list[str]:
    """One kind of disk; returns what went wrong."""
    started = time.monotonic()
    with (
        serving(command, kind, folder, plan.disk) as (server, path),
        Beside(folder / "beside", plan.beside).running() as beside,
    ):
        clients = [Client(path, plan, number) for number in range(plan.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        peak = procs.peak_rss(server.pid)
        cpu = procs.cpu_seconds(server.pid)
    wrong = [f"{kind}: client {c._number}: {c.error}" for c in clients if c.error]
    took = sorted(seconds for client in clients for seconds in client.took)
    total = time.monotonic() - started
    figures = (len(took), total, cpu, took[len(took) // 2] if took else 0, max(took, default=0))
    print(
        f"{kind:<15} {figures[0]:>6} {figures[1]:>8.1f} {figures[2]:>7.1f} {figures[3]:>8.2f} "
        f"{figures[4]:>8.2f} {peak >> 20:>8} {beside.rounds:>5}  {'WRONG' if wrong else 'ok'}",
        flush=True,
    )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=200, help="for each kind of disk")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--size", type=int, default=64, help="MiB of a write")
    parser.add_argument("--disk", type=int, default=2048, help="MiB")
    parser.add_argument("--beside", type=int, default=256, help="MiB that dd writes, each time")
    parser.add_argument("--patience", type=float, default=180, help="seconds without a byte moved")
    parser.add_argument("--pause", type=float, default=0, help="seconds after each step of 64 KiB")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of: %(default)s")
    parser.add_argument("--dir", default="/var/tmp", help="where the disks lie")
    parser.add_argument("--tapdisk", default=str(REPOSITORY / ".venv/bin/tapdisk"))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    args = parser.parse_args()
    plan = Plan(
        args.writes,
        args.clients,
        args.size * MIB,
        args.disk * MIB,
        args.beside,
        args.patience,
        args.pause,
        args.seed,
    )
    print(f"seed {plan.seed}: {plan.writes} writes of {args.size} MiB, {plan.clients} clients")
    print("kind            writes  seconds   CPU s   median  longest  MiB peak    dd")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="tapdisk-soak-") as folder:
        for kind in args.kinds.split(","):
            wrong += soak(args.tapdisk, kind, plan, Path(folder))
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
