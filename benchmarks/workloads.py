"""The rows of the table: fio jobs, and what is taken from fio's report."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

CACHED = "cached"
DIRECT = "direct"

THROUGHPUT_TARGET = 1.0  # at least this share of the best peer's
LATENCY_TARGET = 1.2  # at most this multiple of the best peer's, at depth 1


@dataclass(frozen=True, slots=True)
class Row:
    """One workload, for the servers of one group."""

    bs: str
    rw: str
    depth: int
    group: str = CACHED

    @property
    def name(self) -> str:
        name = f"{self.bs}-{self.rw}-qd{self.depth}"
        return name if self.group == CACHED else f"{self.group}-{name}"

    @property
    def writes(self) -> bool:
        return "write" in self.rw

    @property
    def in_bytes(self) -> bool:
        """Large requests read better as MB/s."""
        return self.bs != "4k"

    @property
    def judges_latency(self) -> bool:
        return self.depth == 1


ROWS = [
    Row("4k", "randread", 32),
    Row("4k", "randwrite", 32),
    Row("4k", "randread", 1),
    Row("4k", "randwrite", 1),
    Row("64k", "randread", 16),
    Row("64k", "randwrite", 16),
    Row("64k", "read", 16),
    Row("64k", "write", 16),
    Row("1m", "read", 8),
    Row("1m", "write", 8),
    Row("4k", "randread", 32, DIRECT),
    Row("4k", "randwrite", 32, DIRECT),
    Row("64k", "randread", 16, DIRECT),
    Row("64k", "randwrite", 16, DIRECT),
]


class FioError(Exception):
    """fio did not run, or met an error on the disk."""


@dataclass(frozen=True, slots=True)
class FioResult:
    ios: int
    iops: float
    mb_s: float
    latency_us: float  # mean completion latency
    latency_p99_us: float
    client_cpu: float  # of fio's own thread, in per cent of one CPU


def fio_problem() -> str | None:
    """Why fio cannot be used here, or None."""
    if not shutil.which("fio"):
        return "fio is not installed (apt install fio)"
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False)
    if "nbd" not in engines.stdout.split():
        return "this fio was built without the nbd engine (Debian's has it: apt install fio)"
    return None


def run_fio(row: Row, uri: str, seconds: float, *, once: int = 0) -> FioResult:
    """Drive URI for so long. One thread, so that ending fio's process ends the whole client.

    With `once` so many bytes are gone through a single time instead, however long that takes.
    """
    how_long = ["--time_based", f"--runtime={round(seconds * 1000)}ms"]
    if once:
        how_long = [f"--size={once}"]
    argv = [
        "fio", f"--name={row.name}", "--ioengine=nbd", f"--uri={uri}", "--thread",
        f"--rw={row.rw}", f"--bs={row.bs}", f"--iodepth={row.depth}", "--norandommap",
        *how_long, "--eta=never", "--output-format=json",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=seconds + 60,
            cwd=tempfile.gettempdir(),
        )
    except subprocess.TimeoutExpired as error:
        raise FioError(f"no end after {error.timeout:g} s: the server hangs") from None
    # libnbd's messages may stand before the report.
    start = 0 if done.stdout.startswith("{") else done.stdout.find("\n{") + 1
    try:
        job = json.loads(done.stdout[start:])["jobs"][0]
    except (ValueError, LookupError):
        raise FioError(_last_line(done.stderr or done.stdout)) from None
    if done.returncode or job["error"]:
        raise FioError(_last_line(done.stderr) or f"fio error {job['error']}")
    side = job["write" if row.writes else "read"]
    if not side["total_ios"]:
        raise FioError("no request was answered")
    return _result(job, side)


def _result(job: dict[str, Any], side: dict[str, Any]) -> FioResult:
    latency = side["clat_ns"]
    return FioResult(
        ios=side["total_ios"],
        iops=side["iops"],
        mb_s=side["bw_bytes"] / 1e6,
        latency_us=latency["mean"] / 1e3,
        latency_p99_us=latency.get("percentile", {}).get("99.000000", 0) / 1e3,
        client_cpu=job["usr_cpu"] + job["sys_cpu"],
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
