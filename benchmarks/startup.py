"""How long the command line takes to start, over what Python itself takes."""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RUNS = 15


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
    begin = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    taken = time.perf_counter() - begin
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise StartError(f"{shlex.join(argv)}: status {done.returncode}: {' '.join(last)}")
    return taken * 1000


def measure(tapdisk: str, image: Path) -> list[Start]:
    """Medians, the commands taking turns; the differences are of the same turn."""
    commands: list[tuple[str, list[str], float | None]] = [
        ("python3 -c pass", [_python_of(tapdisk), "-c", "pass"], None),
        ("tapdisk --version", [tapdisk, "--version"], 80.0),
        ("tapdisk info FILE", [tapdisk, "info", str(image)], 150.0),
    ]
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
