#!/usr/bin/env python3
"""Serve the same images by tapdisk, qemu-nbd and qemu-storage-daemon, in turns.

See README.md in this folder for how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import disks
import procs
import report
import servers
from results import Results, Turn
from servers import Server, ServerError, Spec
from workloads import FioError, Row, fio_problem, run_fio

REPOSITORY = Path(__file__).resolve().parent.parent
RAMP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of image and what is done with it.

    `make(folder, size)` gives the image's path. With `fresh` each turn gets a new image, which is
    written once from start to end.
    """

    name: str
    handle: str
    make: Callable[[Path, int], Path]
    loads: tuple[tuple[str, str, int], ...]
    fresh: bool = False

    def rows(self) -> list[Row]:
        return [Row(bs, rw, depth, self.name) for bs, rw, depth in self.loads]


# ---- images ----------------------------------------------------------------------------------


def qemu_img(*args: object) -> None:
    subprocess.run(["qemu-img", *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def full(form: str) -> Callable[[Path, int], Path]:
    """All clusters hold random data."""

    def make(folder: Path, size: int) -> Path:
        raw, image = folder / "raw", folder / f"full.{form}"
        disks.make(raw, size)
        qemu_img("convert", "-f", "raw", "-O", form, raw, image)
        raw.unlink()
        return image

    return make


def empty(form: str) -> Callable[[Path, int], Path]:
    def make(folder: Path, size: int) -> Path:
        image = folder / f"empty.{form}"
        image.unlink(missing_ok=True)
        qemu_img("create", "-q", "-f", form, image, size)
        return image

    return make


def chain(depth: int) -> Callable[[Path, int], Path]:
    """A chain in which each image holds every depth-th run of 1 MiB."""

    def make(folder: Path, size: int) -> Path:
        parent: Path | None = None
        for level in range(depth):
            image = folder / f"level{level}.qcow2"
            backing = ["-b", parent.name, "-F", "qcow2"] if parent else []
            qemu_img("create", "-q", "-f", "qcow2", *backing, image, size)
            writes = [
                arg
                for at in range(level, size >> 20, depth)
                for arg in ("-c", f"write -q -P {at % 255 + 1} {at}M 1M")
            ]
            for start in range(0, len(writes), 1000):
                subprocess.run(["qemu-io", *writes[start : start + 1000], str(image)], check=True)
            parent = image
        assert parent is not None
        return parent

    return make


_READS_AND_WRITES = (
    ("4k", "randread", 32),
    ("4k", "randwrite", 32),
    ("1m", "read", 8),
    ("1m", "write", 8),
)

CASES = [
    Case(
        "qcow2",
        "qcow2",
        full("qcow2"),
        (*_READS_AND_WRITES, ("64k", "read", 16)),
    ),
    Case(
        "qcow2-new",
        "qcow2",
        empty("qcow2"),
        (("4k", "write", 32), ("64k", "write", 16), ("1m", "write", 8)),
        fresh=True,
    ),
    Case("qcow2-chain4", "qcow2", chain(4), (("4k", "randread", 32), ("1m", "read", 8))),
    Case("vmdk", "vmdk", full("vmdk"), _READS_AND_WRITES),
    Case("vhdx", "vhdx", full("vhdx"), _READS_AND_WRITES),
    Case("vhd", "vhd", full("vpc"), _READS_AND_WRITES),
    Case("vdi", "vdi", full("vdi"), _READS_AND_WRITES),
]

_QEMU_NAMES = {"vhd": "vpc"}
"""Of formats that QEMU calls otherwise."""


# ---- servers ---------------------------------------------------------------------------------


def _tapdisk(handle: str) -> Callable[[str, Path, Path], list[str]]:
    return lambda command, sock, file: [command, "serve", "--socket", str(sock), f"{handle}:{file}"]


def _qemu_nbd(handle: str) -> Callable[[str, Path, Path], list[str]]:
    return lambda command, sock, file: [
        command, "-f", handle, "-t", "-e", "8", "-k", str(sock), "--cache=writeback",
        "--discard=unmap", str(file),
    ]  # fmt: skip


def _storage_daemon(handle: str) -> Callable[[str, Path, Path], list[str]]:
    return lambda command, sock, file: [
        command,
        "--blockdev", f"driver=file,node-name=file,discard=unmap,filename={file}",
        "--blockdev", f"driver={handle},node-name=disk,discard=unmap,file=file",
        "--nbd-server", f"addr.type=unix,addr.path={sock}",
        "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
    ]  # fmt: skip


def _specs(handle: str) -> list[Spec]:
    qemu = _QEMU_NAMES.get(handle, handle)
    daemon, package = "qemu-storage-daemon", "apt install qemu-system-common"
    return [
        Spec("tapdisk", "tapdisk", "make install", _tapdisk(handle), ours=True),
        Spec("qemu-nbd", "qemu-nbd", "apt install qemu-utils", _qemu_nbd(qemu)),
        Spec(daemon, daemon, package, _storage_daemon(qemu), export="disk"),
    ]


def _command(spec: Spec) -> str:
    own = REPOSITORY / ".venv" / "bin" / "tapdisk"
    found = str(own) if spec.ours and own.exists() else servers.find_command(spec.command)
    if not found:
        raise SystemExit(f"not installed: {spec.command} ({spec.package})")
    return found


# ---- turns -----------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measure(row: Row, server: Server, seconds: float, once: int) -> Turn:
    if not once:
        run_fio(row, server.uri, min(RAMP_SECONDS, seconds))
    procs.reset_peak(server.pid)
    before = procs.cpu_seconds(server.pid)
    fio = run_fio(row, server.uri, seconds, once=once)
    cpu = procs.cpu_seconds(server.pid) - before
    return Turn(fio, cpu / fio.ios * 1e6, procs.peak_rss(server.pid))


def _copies(case: Case, folder: Path, specs: list[Spec], size: int) -> dict[str, Path]:
    """Each server its own image: QEMU locks those that it opens."""
    first = folder / specs[0].name
    first.mkdir()
    image = case.make(first, size)
    found = {specs[0].name: image}
    for spec in specs[1:]:
        shutil.copytree(first, folder / spec.name)
        found[spec.name] = folder / spec.name / image.name
    for path in folder.glob("*/*"):
        disks.cool(path)  # in larger units than a copy's, pages take the kernel longer to write to
    return found


def _order(specs: list[Spec], round_: int) -> list[Spec]:
    return specs[round_ % len(specs) :] + specs[: round_ % len(specs)]


def _run_case(case: Case, args: argparse.Namespace, results: Results, folder: Path) -> None:
    specs = _specs(case.handle)
    rows = [row for row in case.rows() if row in results.rows]
    images = _copies(case, folder, specs, args.size)
    with ExitStack() as stack:
        running: dict[str, Server] = {}
        if not case.fresh:
            for spec in specs:
                server = Server(spec, _command(spec), images[spec.name], folder)
                running[spec.name] = stack.enter_context(server)
        for round_, row, spec in _turns(rows, specs, args.rounds):
            os.sync()
            try:
                if case.fresh:
                    image = case.make(images[spec.name].parent, args.size)
                    with Server(spec, _command(spec), image, folder) as server:
                        disks.have_memory(folder, args.size)
                        turn = _measure(row, server, args.seconds, args.size)
                else:
                    disks.warm(running[spec.name].file)
                    turn = _measure(row, running[spec.name], args.seconds, 0)
            except (FioError, ServerError) as error:
                results.problems.append(f"{row.name}, {spec.name}: {error}")
                _say(f"  {row.name}, {spec.name}: {error}")
                continue
            results.add(row, spec.name, round_, turn)
            _say(f"  {row.name}, {spec.name}: {turn.fio.iops:,.0f} IOPS, {turn.cpu_us:.1f} us CPU")


def _turns(rows: list[Row], specs: list[Spec], rounds: int) -> Iterator[tuple[int, Row, Spec]]:
    for round_ in range(rounds):
        for row in rows:
            for spec in _order(specs, round_):
                yield round_, row, spec


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare NBD servers on formatted images.")
    parser.add_argument("--rows", metavar="REGEX", default="", help="only these rows")
    parser.add_argument("--rounds", metavar="N", type=int, default=3)
    parser.add_argument("--seconds", metavar="S", type=float, default=3.0, help="of each turn")
    parser.add_argument("--size", default="1G", help="of the disk (default 1G)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the images lie")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    args = parser.parse_args()
    args.size = disks.parse_size(args.size)
    if problem := fio_problem():
        raise SystemExit(problem)
    wanted = re.compile(args.rows)
    rows = [row for case in CASES for row in case.rows() if wanted.search(row.name)]
    results = Results(rows, ["tapdisk"])
    for case in CASES:
        if any(row in rows for row in case.rows()):
            with tempfile.TemporaryDirectory(dir=args.dir, prefix="tapcore-bench-") as folder:
                _run_case(case, args, results, Path(folder))
    report.show_rows(results)
    for line in results.below():
        print(f"below: {line}")
    if args.json:
        args.json.write_text(json.dumps(results.as_json(), indent=1))
    return 1 if results.problems or (args.check and results.below()) else 0


if __name__ == "__main__":
    sys.exit(main())
