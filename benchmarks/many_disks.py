"""Many disks of one daemon: attach to first byte, private memory of each process, idle CPU time.

    python benchmarks/many_disks.py [--disks 100] [--idle 10]

Prints the median and the largest of each. Only the times depend on the machine's load, and on how
long an fsync takes where the run directory lies: with TMPDIR=/dev/shm it is as in /run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from daemons import daemon_in  # noqa: E402
from nbd_client import Client  # noqa: E402

import tapcore  # noqa: E402
from tapcore.daemon.client import DaemonClient  # noqa: E402

_TICK = os.sysconf("SC_CLK_TCK")


def private_kib(pid: int) -> int:
    """KiB of memory that the process shares with no other."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_"))


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def attach(client: DaemonClient, folder: Path, number: int) -> tuple[float, int]:
    """Seconds from attach to the first byte, and the process's number."""
    begun = time.perf_counter()
    disk = client.attach(f"qcow2:{folder / f'{number}.qcow2'}", name=f"vm{number}")
    with Client(disk["uri"]) as guest:
        guest.read(0, 512)
        return time.perf_counter() - begun, disk["pid"]


def told(what: str, values: list[float], unit: str) -> None:
    """One line."""
    print(f"{what}: median {statistics.median(values):.1f} {unit}, most {max(values):.1f} {unit}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--disks", type=int, default=100)
    parser.add_argument("--idle", type=float, default=10.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, daemon_in(Path(name)) as daemon:
        folder = Path(name)
        for number in range(chosen.disks):
            tapcore.create_image(f"qcow2:{folder / f'{number}.qcow2'}", 64 << 20)
        client = daemon.start()
        assert daemon.process is not None
        found = [attach(client, folder, number) for number in range(chosen.disks)]
        told("attach to first byte", [1000 * seconds for seconds, _ in found], "ms")
        pids = [pid for _, pid in found]
        told("private memory of a disk process", [private_kib(p) / 1024 for p in pids], "MiB")
        print(f"private memory of the daemon: {private_kib(daemon.process.pid) / 1024:.1f} MiB")
        before = sum(map(cpu_seconds, [*pids, daemon.process.pid]))
        time.sleep(chosen.idle)
        used = sum(map(cpu_seconds, [*pids, daemon.process.pid])) - before
        print(f"CPU time of {len(pids)} idle disks and the daemon in {chosen.idle} s: {used:.2f} s")
        client.close()


if __name__ == "__main__":
    main()
