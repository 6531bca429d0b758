#!/usr/bin/env python3
"""Convert the same images by `tapdisk convert` and `qemu-img convert`, in turns.

See README.md in this folder for how to read the result.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import disks
import report

REPOSITORY = Path(__file__).resolve().parent.parent
MEMORY_TARGET = 256 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion; the target is the least ratio of qemu-img's wall time to ours."""

    name: str
    source: str
    form: str
    compressed: bool = False
    options: str = ""
    target: float = 1.0

    def ours(self, command: str, source: Path, target: Path) -> list[str]:
        words = [command, "convert", "-q", str(source), f"{_handle(self.form)}:{target}"]
        return words + (["-c"] if self.compressed else []) + self._options()

    def theirs(self, source: Path, target: Path) -> list[str]:
        source_form = source.suffix[1:]
        words = ["qemu-img", "convert", "-f", source_form, "-O", self.form]
        words += (["-c"] if self.compressed else []) + self._options()
        return [*words, str(source), str(target)]

    def _options(self) -> list[str]:
        return ["-o", self.options] if self.options else []


def _handle(form: str) -> str:
    return "aio" if form == "raw" else form


STREAM = "subformat=streamOptimized"
JOBS = [
    Job("raw-qcow2", "disk.raw", "qcow2"),
    Job("qcow2-raw", "disk.qcow2", "raw"),
    Job("raw-qcow2-c", "disk.raw", "qcow2", compressed=True, target=2.0),
    Job("raw-qcow2-c-zstd", "disk.raw", "qcow2", True, "compression_type=zstd", 1.0),
    Job("qcow2c-raw", "compressed.qcow2", "raw"),
    Job("vmdk-qcow2", "disk.vmdk", "qcow2"),
    Job("qcow2-vmdk", "disk.qcow2", "vmdk"),
    Job("raw-stream", "disk.raw", "vmdk", options=STREAM, target=2.0),
    Job("stream-raw", "stream.vmdk", "raw", target=2.0),
    Job("sparse-1T", "sparse.qcow2", "qcow2", target=0.0),  # to be done in seconds
]


def _make_sources(folder: Path, size: int) -> None:
    """Half of the disk holds data, of which half can be compressed."""
    rng = random.Random(2006)
    words = [rng.randbytes(rng.randint(3, 9)) for _ in range(500)]
    text = b" ".join(rng.choices(words, k=300_000))[:_CHUNK]
    with open(folder / "disk.raw", "wb") as file:
        file.truncate(size)
        for number in range(0, size // _CHUNK, 4):
            file.seek(number * _CHUNK)
            noise = rng.randbytes(_CHUNK)
            shift = rng.randrange(_CHUNK)
            file.write(noise + text[shift:] + text[:shift])
    for name, extra in (
        ("disk.qcow2", []),
        ("compressed.qcow2", ["-c", "-m", "8", "-W"]),
        ("disk.vmdk", []),
        ("stream.vmdk", ["-o", STREAM]),
    ):
        target = folder / name
        form = target.suffix[1:]
        command = ["qemu-img", "convert", "-f", "raw", "-O", form, *extra, "disk.raw", name]
        subprocess.run(command, check=True, cwd=folder)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "sparse.qcow2", "1T"], check=True, cwd=folder
    )
    writes = [part for at in range(0, 1 << 10, 64) for part in ("-c", f"write -q {at}G 1M")]
    subprocess.run(["qemu-io", *writes, "sparse.qcow2"], check=True, cwd=folder)


def _run(argv: list[str], target: Path, room: int) -> tuple[float, int]:
    """Seconds, and bytes of memory at the peak."""
    target.unlink(missing_ok=True)
    os.sync()
    disks.have_memory(target.parent, room)
    started = time.monotonic()
    process = subprocess.Popen(argv)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(argv)}")
    return time.monotonic() - started, usage.ru_maxrss * 1024


def _row(job: Job, folder: Path, command: str, rounds: int) -> list[str]:
    source, target = folder / job.source, folder / f"target.{job.form}"
    ratios, walls, memory = [], [], 0
    disks.warm(source)
    room = source.stat().st_blocks * 512
    for round_ in range(rounds):
        turns = {"ours": job.ours(command, source, target), "theirs": job.theirs(source, target)}
        names = ["ours", "theirs"] if round_ % 2 == 0 else ["theirs", "ours"]
        took = {}
        for name in names:
            took[name], peak = _run(turns[name], target, room)
            memory = max(memory, peak) if name == "ours" else memory
        ratios.append(took["theirs"] / took["ours"])
        walls.append((took["ours"], took["theirs"]))
        print(
            f"  {job.name}: {took['ours']:.2f} s, qemu-img {took['theirs']:.2f} s", file=sys.stderr
        )
    ours, theirs = (min(pair[which] for pair in walls) for which in (0, 1))
    ratio = theirs / ours
    good = ratio >= job.target and memory <= MEMORY_TARGET
    return [
        job.name,
        f"{ours:.2f} s",
        f"{theirs:.2f} s",
        f"{ratio:.2f}x",
        f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{job.target:.1f}x",
        f"{memory >> 20} MiB",
        "ok" if good else "BELOW",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare conversions with qemu-img's.")
    parser.add_argument("--jobs", metavar="REGEX", default="", help="only these")
    parser.add_argument("--rounds", metavar="N", type=int, default=5)
    parser.add_argument("--size", default="4G", help="of the disk (default 4G, half of it data)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the images lie")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled, too
    wanted = re.compile(args.jobs)
    command = str(REPOSITORY / ".venv" / "bin" / "tapdisk")
    columns = ["conversion", "tapdisk", "qemu-img", "quicker", "median", "target", "memory", ""]
    table = report.Table("convert: wall time, the best of all rounds", columns)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="tapcore-bench-") as name:
        folder = Path(name)
        _make_sources(folder, disks.parse_size(args.size))
        table.sections.append(
            [_row(job, folder, command, args.rounds) for job in JOBS if wanted.search(job.name)]
        )
    table.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
