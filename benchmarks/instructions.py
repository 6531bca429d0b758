#!/usr/bin/env python3
"""Count what a request costs the server, of one tree and of another: the same each time.

Instructions in user mode (valgrind's callgrind) and calls into the kernel (strace) a request, in
the rows of nbd.py and some more. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import servers
from images import chain, empty, full, packed, raw
from servers import Server, Spec

REPOSITORY = Path(__file__).resolve().parent.parent
KIB, MIB = 1 << 10, 1 << 20
SIZE = 128 * MIB
"""Of each disk."""

READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6
_REQUEST = struct.Struct(">IHHQQI")
_CHUNK = struct.Struct(">IHHQI")
_SIMPLE = 0x67446698

# A clock that counts its readings: under valgrind all is fifty times as slow, and a server that
# takes its disk for slow goes another way.
START = """
import itertools, sys, time
time.monotonic = itertools.count(1.0, 1e-6).__next__
from tapcore.cli.entry import run
sys.argv[0] = "tapdisk"
sys.exit(run())
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of `size` bytes, `depth` at a time, each at a place of its own.

    Attributes:
        flushed: behind each batch, which is not counted as a request.
    """

    rw: str
    size: int
    depth: int
    flushed: bool = False

    @property
    def name(self) -> str:
        size = f"{self.size}b" if self.size < KIB else f"{self.size // KIB}k"
        size = f"{self.size // MIB}m" if self.size >= MIB else size
        return f"{size}-{self.rw}-qd{self.depth}" + "-flush" * self.flushed

    @property
    def command(self) -> int:
        kinds = {"write": WRITE, "read": READ, "trim": TRIM, "zeroes": ZEROES}
        return kinds[self.rw.removeprefix("rand")]

    def places(self) -> list[int]:
        """A whole number of batches, at most 1024 requests and the size of the disk."""
        found = list(range(0, SIZE, self.size))
        if self.rw.startswith("rand"):
            random.Random(2006).shuffle(found)
        return found[: 1024 // self.depth * self.depth]


@dataclass(frozen=True, slots=True)
class Case:
    """A disk, made once and copied for each load and server."""

    name: str
    handle: str
    make: Callable[[Path, int], Path]
    loads: Sequence[Load]
    options: tuple[str, ...] = ()


# ---- disks -----------------------------------------------------------------------------------


def _loads(*words: str) -> list[Load]:
    found = []
    for word in words:
        size, rw, depth, flush = re.fullmatch(r"(\d+[bkm])-(\w+)-qd(\d+)(-flush)?", word).groups()  # type: ignore[union-attr]
        length = int(size[:-1]) * {"b": 1, "k": KIB, "m": MIB}[size[-1]]
        found.append(Load(rw, length, int(depth), bool(flush)))
    return found


RAW = _loads(
    "4k-randread-qd32", "4k-randwrite-qd32", "4k-randread-qd1", "4k-randwrite-qd1",
    "64k-randread-qd16", "64k-randwrite-qd16", "64k-read-qd16", "64k-write-qd16", "1m-read-qd8",
    "1m-write-qd8",
)  # fmt: skip
DIRECT = _loads(
    "4k-randread-qd1", "4k-randwrite-qd1", "4k-randread-qd8", "4k-randwrite-qd8",
    "4k-randread-qd32", "4k-randwrite-qd32", "4k-randwrite-qd32-flush", "64k-randread-qd16",
    "64k-randwrite-qd16", "1m-read-qd8", "1m-write-qd8",
)  # fmt: skip
FEW = _loads("4k-randread-qd32", "4k-randwrite-qd32", "4k-randread-qd1", "64k-randwrite-qd16")
NEW = _loads(
    "4k-write-qd32", "4k-randwrite-qd32", "64k-write-qd16", "64k-randwrite-qd1", "1m-write-qd8"
)
SMALL = [*_loads("512b-write-qd32", "512b-randwrite-qd32"), *NEW]
PACKED = _loads("4k-read-qd32", "4k-randread-qd32", "1m-read-qd8")
GIVEN_UP = _loads("64k-zeroes-qd16", "64k-trim-qd16", "1m-zeroes-qd8", "1m-trim-qd8")
CASES = [
    Case("sync", "sync", raw, RAW),
    Case("aio", "aio", raw, RAW),
    Case("direct", "aio", raw, DIRECT, options=("--cache", "none")),
    Case("qcow2", "qcow2", full("qcow2"), RAW),
    Case("qcow2-direct", "qcow2", full("qcow2"), FEW, options=("--cache", "none")),
    Case("qcow2-new", "qcow2", empty("qcow2"), SMALL),
    Case("qcow2-gone", "qcow2", full("qcow2"), GIVEN_UP),
    Case("qcow2-chain4", "qcow2", chain(4), RAW),
    Case("qcow2-packed", "qcow2", packed, PACKED),
    Case("qcow", "qcow", full("qcow"), RAW),
    Case("qcow-new", "qcow", empty("qcow"), SMALL),
    Case("qcow-gone", "qcow", full("qcow"), GIVEN_UP),
    Case("vmdk", "vmdk", full("vmdk"), RAW),
    Case("vmdk-direct", "vmdk", full("vmdk"), FEW, options=("--cache", "none")),
    Case("vmdk-new", "vmdk", empty("vmdk"), SMALL),
    Case("vmdk-gone", "vmdk", full("vmdk"), GIVEN_UP),
    Case("vdi", "vdi", full("vdi"), RAW),
    Case("vhd", "vhd", full("vpc"), RAW),
    Case("vhdx", "vhdx", full("vhdx"), RAW),
]


# ---- a client --------------------------------------------------------------------------------


class Client:
    """Sends batches, and takes their replies; anything but success ends it."""

    def __init__(self, uri: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(parse_qs(urlsplit(uri).query)["socket"][0])
        self._file = self._sock.makefile("rb", buffering=2 * MIB)
        self._file.read(18)
        structured = struct.pack(">8sII", b"IHAVEOPT", 8, 0)
        export = struct.pack(">8sII", b"IHAVEOPT", 1, 0)
        self._sock.sendall(struct.pack(">I", 3) + structured)
        self._file.read(20)
        self._sock.sendall(export)
        self._file.read(10)

    def run(self, load: Load, places: Sequence[int]) -> None:
        """All requests of a load, `depth` at a time."""
        payload = os.urandom(load.size) if load.command == WRITE else b""
        for start in range(0, len(places), load.depth):
            batch = places[start : start + load.depth]
            self._sock.sendall(
                b"".join(self._request(load.command, at, load.size) + payload for at in batch)
            )
            self._take(len(batch))
            if load.flushed:
                self.flush()

    def flush(self) -> None:
        self._sock.sendall(self._request(FLUSH, 0, 0))
        self._take(1)

    def _request(self, command: int, at: int, size: int) -> bytes:
        return _REQUEST.pack(0x25609513, 0, command, at, at, size)

    def _take(self, count: int) -> None:
        while count:
            magic, *_ = struct.unpack(">I", head := self._file.read(4))
            if magic == _SIMPLE:
                (error, _) = struct.unpack(">IQ", self._file.read(12))
                assert not error, os.strerror(error)
                count -= 1
                continue
            _, flags, kind, _, length = _CHUNK.unpack(head + self._file.read(16))
            assert not kind & 1 << 15, "a read has failed"
            self._file.read(length)
            count -= flags & 1

    def close(self) -> None:
        self._file.close()
        self._sock.close()


# ---- counting --------------------------------------------------------------------------------


class Callgrind:
    """Instructions in user mode, between two looks."""

    def __init__(self, folder: Path) -> None:
        self._out = folder / "callgrind"
        self.words = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={self._out}"]
        self.words += ["--instr-atstart=no"]
        self._parts = 0

    def look(self, pid: int) -> None:
        """Count from here on."""
        self._tell(pid, "instrumentation on")
        self._tell(pid, "zero")

    def counted(self, pid: int) -> int:
        """What came since the look."""
        self._tell(pid, "dump")
        self._parts += 1
        text = Path(f"{self._out}.{self._parts}").read_text()
        (found,) = re.findall(r"^totals: (\d+)", text, re.MULTILINE)
        return int(found)

    def _tell(self, pid: int, words: str) -> None:
        told = [f"--pid={pid}", *words.split()]
        subprocess.run(["vgdb", *told], check=True, capture_output=True)


class Strace:
    """Calls into the kernel, between two looks."""

    def __init__(self, folder: Path) -> None:
        self._out = folder / "strace"
        self.words = ["strace", "-f", "-q", "-o", str(self._out)]

    def look(self, pid: int) -> None:
        self._before = self._lines()

    def counted(self, pid: int) -> int:
        return self._lines() - self._before

    def _lines(self) -> int:
        lines = self._out.read_text().splitlines()
        return sum("resumed>" not in line for line in lines)


@dataclass(frozen=True, slots=True)
class Tree:
    """What is compared: the command of a tree, perhaps with more options of `serve`."""

    tapdisk: Path
    options: tuple[str, ...] = ()


def _cost(case: Case, load: Load, tree: Tree, image: Path, counter: Callgrind | Strace) -> float:
    """Of one request of a load on a copy of an image, with its part of the flush at the end."""
    tapdisk = tree.tapdisk
    python = str(tapdisk.with_name("python"))

    def argv(command: str, sock: Path, file: Path) -> list[str]:
        options = [*case.options, *(each.replace("%", str(sock.parent)) for each in tree.options)]
        served = ["serve", "--socket", str(sock), *options, f"{case.handle}:{file}"]
        return [*counter.words, python, "-P", "-c", START, *served]

    places = load.places()
    with tempfile.TemporaryDirectory(dir=image.parent.parent) as name:
        folder = Path(name)
        shutil.copytree(image.parent, folder / "disk")
        file = folder / "disk" / image.name
        spec = Spec(case.name, "tapdisk", "make install", argv, ours=True)
        with Server(spec, str(tapdisk), file, folder) as server:
            client = Client(server.uri)
            warm = len(places) // 4 // load.depth * load.depth  # also what is loaded only when used
            client.run(load, places[:warm])
            places = places[warm:]
            counter.look(server.pid)
            client.run(load, places)
            if load.command != READ:
                client.flush()
            cost = counter.counted(server.pid) / len(places)
            client.close()
    return cost


def _rows(wanted: re.Pattern[str]) -> Iterator[tuple[Case, list[tuple[str, Load]]]]:
    for case in CASES:
        named = [(f"{case.name}-{load.name}", load) for load in case.loads]
        if found := [(name, load) for name, load in named if wanted.search(name)]:
            yield case, found


def _show(name: str, costs: list[float], digits: int) -> str:
    figures = " ".join(f"{cost:11,.{digits}f}" for cost in costs)
    ratios = " ".join(f"{cost / costs[0]:6.3f}" for cost in costs[1:] if costs[0])
    return f"{figures} {ratios:>6s}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Count what a request costs tapdisk's server.")
    parser.add_argument("--tapdisk", metavar="PATH", type=Path, action="append", help="a tree's")
    parser.add_argument(
        "--options",
        metavar="OPTIONS",
        type=str.split,
        action="append",
        default=[],
        help="the first tree once more, with these options of serve; %% is a folder",
    )
    parser.add_argument("--rows", metavar="REGEX", type=re.compile, default=re.compile(""))
    parser.add_argument("--calls", action="store_true", help="calls into the kernel as well")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the disks lie")
    args = parser.parse_args()
    commands = args.tapdisk or [REPOSITORY / ".venv" / "bin" / "tapdisk"]
    trees = [Tree(command.absolute()) for command in commands]
    trees += [Tree(trees[0].tapdisk, tuple(words)) for words in args.options]
    counters: list[type[Callgrind] | type[Strace]] = [Callgrind, *[Strace] * args.calls]
    servers.START_SECONDS = 120.0
    for case, rows in _rows(args.rows):
        with tempfile.TemporaryDirectory(dir=args.dir, prefix="tapcore-bench-") as name:
            (folder := Path(name, "made")).mkdir()
            image = case.make(folder, SIZE)
            for row, load in rows:
                line = f"{row:32s}"
                for kind in counters:
                    costs = []
                    for tree in trees:
                        with tempfile.TemporaryDirectory() as scratch:
                            counter = kind(Path(scratch))
                            costs.append(_cost(case, load, tree, image, counter))
                    line += _show(row, costs, 0 if kind is Callgrind else 2)
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
