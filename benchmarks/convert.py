#!/usr/bin/env python3
"""Convert the same images by `tapdisk convert` and `qemu-img convert`, in turns.

See README.md in this folder for how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import disks
import lineup
import report
from images import qemu_img

MEMORY_TARGET = 256 << 20
SIZE_TARGET = 1.03
"""A compressed image has at most so many times the bytes of qemu-img's."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion.

    Attributes:
        name: in the table.
        source: a file that `_make_sources` has made.
        form: the target's format, as QEMU calls it.
        compressed: with -c.
        options: of -o.
        wall: qemu-img's wall time is at least so many times ours.
        cpu: the same of CPU time; None: it is shown, and not judged.
        packs: the size of the target is judged.
    """

    name: str
    source: str
    form: str
    compressed: bool = False
    options: str = ""
    wall: float = 1.0
    cpu: float | None = None
    packs: bool = False

    def ours(self, command: str, source: Path, target: Path) -> list[str]:
        """The words of tapdisk's command."""
        words = [command, "convert", str(source), f"{_handle(self.form)}:{target}"]
        return words + (["-c"] if self.compressed else []) + self._options()

    def theirs(self, source: Path, target: Path) -> list[str]:
        """The words of qemu-img's."""
        words = ["qemu-img", "convert", "-f", source.suffix[1:], "-O", self.form]
        words += (["-c"] if self.compressed else []) + self._options()
        return [*words, str(source), str(target)]

    def _options(self) -> list[str]:
        return ["-o", self.options] if self.options else []


def _handle(form: str) -> str:
    return {"raw": "aio", "vpc": "vhd"}.get(form, form)


def _plain(source: str, form: str) -> Job:
    return Job(f"{source}-{form}", f"disk.{source}", form, cpu=1.0)


STREAM = "subformat=streamOptimized"
ZSTD = "compression_type=zstd"
JOBS = [
    *(_plain("raw", form) for form in ("raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi")),
    *(_plain("qcow2", form) for form in ("raw", "qcow2", "vmdk")),
    *(_plain("vmdk", form) for form in ("raw", "qcow2")),
    Job("raw-qcow2-c", "disk.raw", "qcow2", compressed=True, wall=6.0, packs=True),
    Job("raw-qcow2-c-zstd", "disk.raw", "qcow2", True, ZSTD, wall=2.0, packs=True),
    Job("raw-stream", "disk.raw", "vmdk", options=STREAM, wall=2.0, packs=True),
    Job("zlib-raw", "zlib.qcow2", "raw"),
    Job("zlib-qcow2", "zlib.qcow2", "qcow2"),
    Job("zstd-raw", "zstd.qcow2", "raw"),
    Job("zstd-qcow2", "zstd.qcow2", "qcow2"),
    Job("stream-raw", "stream.vmdk", "raw"),
    Job("stream-qcow2", "stream.vmdk", "qcow2"),
    Job("packed-qcow-raw", "packed.qcow", "raw"),
    Job("sparse-1T", "sparse.qcow2", "qcow2", wall=0.0),  # to be done in seconds
]


def _make_sources(folder: Path, size: int, wanted: set[str], command: str) -> None:
    """Half of the disk holds data, of which half can be compressed.

    Args:
        folder: where they go.
        size: of the disk, bytes.
        wanted: which ones.
        command: tapdisk.
    """
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
        ("disk.vmdk", []),
        ("zlib.qcow2", ["-c", "-m", "8", "-W"]),
        ("zstd.qcow2", ["-c", "-o", ZSTD, "-m", "8", "-W"]),
        ("stream.vmdk", ["-o", STREAM]),
    ):
        if name in wanted:
            form = Path(name).suffix[1:]
            qemu_img("convert", "-f", "raw", "-O", form, *extra, folder / "disk.raw", folder / name)
    if "packed.qcow" in wanted:  # qemu-img writes one, and then fails without a word
        argv = [command, "convert", "-q", "-c", f"{folder}/disk.raw", f"qcow:{folder}/packed.qcow"]
        subprocess.run(argv, check=True)
    if "sparse.qcow2" in wanted:
        qemu_img("create", "-q", "-f", "qcow2", folder / "sparse.qcow2", "1T")
        writes = [part for at in range(0, 1 << 10, 64) for part in ("-c", f"write -q {at}G 1M")]
        subprocess.run(["qemu-io", *writes, "sparse.qcow2"], check=True, cwd=folder)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one conversion took.

    Attributes:
        wall: seconds.
        cpu: seconds, of the process and what it has waited for.
        memory: bytes at the peak.
        size: bytes on disk of what came of it.
    """

    wall: float
    cpu: float
    memory: int
    size: int


def _run(argv: list[str], target: Path, room: int) -> Turn:
    target.unlink(missing_ok=True)
    os.sync()
    disks.have_memory(target.parent, room)
    started = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(argv)}")
    cpu = usage.ru_utime + usage.ru_stime
    return Turn(wall, cpu, usage.ru_maxrss * 1024, target.stat().st_blocks * 512)


@dataclass(frozen=True, slots=True)
class Measured:
    """A job at one size of disk; the turns of both by rounds."""

    job: Job
    size: str
    ours: list[Turn]
    theirs: list[Turn]

    @property
    def wall(self) -> float:
        """qemu-img's best time beside our best."""
        return min(t.wall for t in self.theirs) / min(t.wall for t in self.ours)

    @property
    def cpu(self) -> float:
        """The same of CPU time."""
        return min(t.cpu for t in self.theirs) / min(t.cpu for t in self.ours)

    @property
    def bulk(self) -> float:
        """Our size beside qemu-img's."""
        return self.ours[0].size / max(self.theirs[0].size, 1)

    @property
    def memory(self) -> int:
        """Ours at the peak, bytes."""
        return max(turn.memory for turn in self.ours)

    @property
    def holds(self) -> bool:
        """Whether all that is judged is as it should be."""
        return (
            self.wall >= self.job.wall
            and (self.job.cpu is None or self.cpu >= self.job.cpu)
            and (not self.job.packs or self.bulk <= SIZE_TARGET)
            and self.memory <= MEMORY_TARGET
        )

    def cells(self) -> list[str]:
        """A line of the table."""
        ratios = [t.wall / o.wall for o, t in zip(self.ours, self.theirs, strict=True)]
        return [
            f"{self.job.name} {self.size}",
            f"{min(t.wall for t in self.ours):.2f} s",
            f"{min(t.wall for t in self.theirs):.2f} s",
            f"{self.wall:.2f}x",
            f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{self.job.wall:.1f}x",
            f"{min(t.cpu for t in self.ours):.2f} s",
            f"{self.cpu:.2f}x",
            f"{self.bulk:.3f}",
            f"{self.memory >> 20} MiB",
            "ok" if self.holds else "BELOW",
        ]


_COLUMNS = [
    "conversion", "tapdisk", "qemu-img", "quicker", "median", "target", "CPU", "less CPU",
    "size", "memory", "",
]  # fmt: skip


def _measure(job: Job, size: str, folder: Path, command: str, rounds: int) -> Measured:
    source, target = folder / job.source, folder / f"target.{job.form}"
    disks.warm(source)
    room = min((folder / "disk.raw").stat().st_blocks * 512, 2 << 30)
    argvs = {"ours": job.ours(command, source, target), "theirs": job.theirs(source, target)}
    turns: dict[str, list[Turn]] = {"ours": [], "theirs": []}
    for round_ in range(rounds):
        names = list(argvs) if round_ % 2 == 0 else list(reversed(argvs))
        for name in names:
            turns[name].append(_run(argvs[name], target, room))
        ours, theirs = turns["ours"][-1], turns["theirs"][-1]
        print(
            f"  {job.name} {size}: {ours.wall:.2f} s, qemu-img {theirs.wall:.2f} s; CPU "
            f"{ours.cpu:.2f} s, qemu-img {theirs.cpu:.2f} s",
            file=sys.stderr,
        )
    target.unlink()
    return Measured(job, size, turns["ours"], turns["theirs"])


def _on_signal(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # the images are removed


def main() -> int:
    """Measure, and say how it went."""
    signal.signal(signal.SIGTERM, _on_signal)
    parser = argparse.ArgumentParser(description="Compare conversions with qemu-img's.")
    parser.add_argument("--jobs", metavar="REGEX", default="", help="only these")
    parser.add_argument("--rounds", metavar="N", type=int, default=5)
    parser.add_argument("--tapdisk", metavar="PATH", help="the command (default: .venv, PATH)")
    parser.add_argument(
        "--size", action="append", help="of the disk, half of it data (default 96M and 512M)"
    )
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the images lie")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled, too
    jobs = [job for job in JOBS if re.search(args.jobs, job.name)]
    command = lineup.find_tapdisk(args.tapdisk)
    if command is None:
        raise SystemExit("tapdisk is not installed (make install)")
    table = report.Table("convert: the best of all rounds", _COLUMNS)
    found = []
    for size in args.size or ["96M", "512M"]:
        with tempfile.TemporaryDirectory(dir=args.dir, prefix="tapbench-") as name:
            folder = Path(name)
            _make_sources(folder, disks.parse_size(size), {job.source for job in jobs}, command)
            found += [_measure(job, size, folder, command, args.rounds) for job in jobs]
    table.sections.append([each.cells() for each in found])
    table.show()
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    return 1 if args.check and not all(each.holds for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
