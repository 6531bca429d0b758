"""What a start of the command line costs, in CPU time over what Python itself takes.

CPU time, since it says the same on a busy machine.
"""

from __future__ import annotations

import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RUNS = 15
FORMATS = "qcow2", "vmdk"


@dataclass(frozen=True, slots=True)
class Start:
    command: str
    median_ms: float
    over_python_ms: float
    target_ms: float | None  # over Python

    @property
    def ok(self) -> bool:
        return self.target_ms is None or self.over_python_ms <= self.target_ms


class StartError(Exception):
    """A command that is timed failed."""


def _python_of(tapdisk: str) -> str:
    """The interpreter that the command runs on, so that only the command's own work counts."""
    with open(tapdisk, "rb") as script:
        first = script.readline(256)
    if first.startswith(b"#!"):
        words = shlex.split(first[2:].decode(errors="replace"))
        if words and "python" in Path(words[0]).name and Path(words[0]).exists():
            return words[0]
    return sys.executable


def _run(argv: list[str]) -> float:
    before = _cpu_of_children()
    done = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    taken = _cpu_of_children() - before
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise StartError(f"{shlex.join(argv)}: status {done.returncode}: {' '.join(last)}")
    return taken * 1000


def _of_others(image: Path) -> list[tuple[str, list[str], None]]:
    """The same of qemu-img, where there is one."""
    if (program := shutil.which("qemu-img")) is None:
        return []
    return [
        ("qemu-img --version", [program, "--version"], None),
        ("qemu-img info FILE", [program, "info", "-f", "raw", str(image)], None),
    ]


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(tapdisk: str, image: Path) -> list[Start]:
    """Medians, the commands taking turns; the differences are of the same turn.

    Args:
        tapdisk: the command.
        image: a raw disk; others are made beside it.
    """
    commands: list[tuple[str, list[str], float | None]] = [
        ("python3 -c pass", [_python_of(tapdisk), "-c", "pass"], None),
        ("tapdisk --version", [tapdisk, "--version"], 25.0),
        ("tapdisk formats", [tapdisk, "formats"], 60.0),
        ("tapdisk info FILE", [tapdisk, "info", str(image)], 60.0),
    ]
    for handle in FORMATS:
        made = image.with_suffix(f".{handle}")
        _run([tapdisk, "create", "--force", f"{handle}:{made}", "1G"])
        commands.append((f"tapdisk info {handle}", [tapdisk, "info", str(made)], 60.0))
    commands += _of_others(image)
    for _, argv, _ in commands:
        _run(argv)  # bytecode and page cache
    turns = [[_run(argv) for _, argv, _ in commands] for _ in range(RUNS)]
    return [
        Start(
            name,
            statistics.median(turn[i] for turn in turns),
            statistics.median(turn[i] - turn[0] for turn in turns),
            target,
        )
        for i, (name, _, target) in enumerate(commands)
    ]


if __name__ == "__main__":  # startup.py TAPDISK IMAGE
    for start in measure(sys.argv[1], Path(sys.argv[2])):
        aim = "" if start.target_ms is None else f"  (at most {start.target_ms:.0f})"
        over = f"{start.over_python_ms:+6.1f} over Python{aim}"
        print(f"{start.command:20} {start.median_ms:6.1f} ms  {over}")
