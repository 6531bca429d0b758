"""The rows of the table: fio jobs, and what is taken from fio's report."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOOK_SECONDS = 0.25
"""How often somebody may look at the server meanwhile."""

READ_SHARE = 70
"""Per cent of the requests of `randrw`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One workload on one kind of disk.

    Attributes:
        case: the kind of disk.
        bs: of a request, as fio says it.
        rw: fio's word.
        depth: requests in flight on a connection.
        connections: at a time.
        flush: a flush follows so many writes; 0: none does.
        cpu_target: the CPU time of a request is at most this share of the best peer's; None: it is
            shown, and not judged.
    """

    case: str
    bs: str
    rw: str
    depth: int
    connections: int = 1
    flush: int = 0
    cpu_target: float | None = None

    @property
    def name(self) -> str:
        """Unique."""
        many = f"x{self.connections}" if self.connections > 1 else ""
        flushes = f"-flush{self.flush}" if self.flush else ""
        return f"{self.case}-{self.bs}-{self.rw}-qd{self.depth}{many}{flushes}"

    @property
    def in_bytes(self) -> bool:
        """Large requests read better as MB/s."""
        return self.bs != "4k"


class FioError(Exception):
    """fio did not run, or met an error on the disk."""


@dataclass(frozen=True, slots=True)
class FioResult:
    """What fio says of all its connections together.

    Attributes:
        ios: requests answered.
        iops: a second.
        mb_s: a second.
        latency_us: mean, until completion.
        latency_p99_us: the largest of 99 % of the requests of the slowest direction.
        client_cpu: of a thread of fio's, in per cent of one CPU.
    """

    ios: int
    iops: float
    mb_s: float
    latency_us: float
    latency_p99_us: float
    client_cpu: float


def fio_problem() -> str | None:
    """Why fio cannot be used here, or None."""
    if not shutil.which("fio"):
        return "fio is not installed (apt install fio)"
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False)
    if "nbd" not in engines.stdout.split():
        return "this fio was built without the nbd engine (Debian's has it: apt install fio)"
    return None


def run_fio(
    row: Row,
    uri: str,
    seconds: float,
    *,
    once: int = 0,
    look: Callable[[], object] | None = None,
) -> FioResult:
    """Drive URI for so long, by threads, so that ending fio's process ends all clients.

    Args:
        row: what to do.
        uri: of the disk.
        seconds: how long.
        once: go through so many bytes a single time instead, however long that takes; 0: do not.
        look: called now and then meanwhile.
    """
    how_long = ["--time_based", f"--runtime={round(seconds * 1000)}ms"]
    if once:
        how_long = [f"--size={once}"]
    if row.flush:
        how_long.append(f"--fsync={row.flush}")
    argv = [
        "fio", f"--name={row.name}", "--ioengine=nbd", f"--uri={uri}", "--thread",
        f"--rw={row.rw}", f"--bs={row.bs}", f"--iodepth={row.depth}", "--norandommap",
        f"--rwmixread={READ_SHARE}", f"--numjobs={row.connections}", "--group_reporting",
        *how_long, "--eta=never", "--output-format=json",
    ]  # fmt: skip
    out, err, status = _watched(argv, seconds + 60, look)
    # libnbd's messages may stand before the report.
    start = 0 if out.startswith("{") else out.find("\n{") + 1
    try:
        job = json.loads(out[start:])["jobs"][0]
    except (ValueError, LookupError):
        raise FioError(_last_line(err or out)) from None
    if status or job["error"]:
        raise FioError(_last_line(err) or f"fio error {job['error']}")
    sides = [side for side in (job["read"], job["write"]) if side["total_ios"]]
    if not sides:
        raise FioError("no request was answered")
    return _result(job, sides)


def _watched(
    argv: list[str], most: float, look: Callable[[], object] | None
) -> tuple[str, str, int]:
    """Both outputs and the status of a command that takes `most` seconds at most."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tempfile.gettempdir(),
    )
    with process:
        end = time.monotonic() + most
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=LOOK_SECONDS if look else most)
                    return out, err, process.returncode
                except subprocess.TimeoutExpired:
                    if time.monotonic() > end:
                        why = f"no end after {most:g} s: the server hangs"
                        raise FioError(why) from None
                if look is not None:
                    look()
        except BaseException:
            process.kill()
            raise


def _result(job: dict[str, Any], sides: list[dict[str, Any]]) -> FioResult:
    ios = sum(side["total_ios"] for side in sides)
    latency = sum(side["clat_ns"]["mean"] * side["total_ios"] for side in sides) / ios
    worst = [side["clat_ns"].get("percentile", {}).get("99.000000", 0) for side in sides]
    return FioResult(
        ios=ios,
        iops=sum(side["iops"] for side in sides),
        mb_s=sum(side["bw_bytes"] for side in sides) / 1e6,
        latency_us=latency / 1e3,
        latency_p99_us=max(worst) / 1e3,
        client_cpu=job["usr_cpu"] + job["sys_cpu"],
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
