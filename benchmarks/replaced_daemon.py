"""The daemon is killed, or replaced, while its disks are under load: no client may see an error.

    python benchmarks/replaced_daemon.py [--disks 20] [--rounds 6] [--pause 1.5]

Each second round is a SIGKILL, the others are `tapdisk daemon --stop --keep-disks`. Exit status 1
if a client had an error, a disk's process was another afterwards, or the next daemon lost one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from daemons import RunningDaemon, daemon_in  # noqa: E402

import tapcore  # noqa: E402

SIZE = 16 << 20
JOB = """[global]
ioengine=nbd
rw=randwrite
bs=4k
iodepth=4
size={size}
time_based
runtime=3600
verify=crc32c
verify_backlog=64
verify_fatal=1
"""


def replace(daemon: RunningDaemon, *, kill: bool) -> float:
    """Let another daemon take over; returns how long there was none (seconds)."""
    begun = time.perf_counter()
    if kill:
        daemon.kill()
    else:
        assert daemon.process is not None
        with daemon.client() as client:
            client.stop(keep_disks=True)
        assert daemon.process.wait(60) == 0
    daemon.start().close()
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pause", type=float, default=1.5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, daemon_in(Path(name)) as daemon:
        folder = Path(name)
        handles = ("qcow2", "aio", "vhdx", "vmdk")
        names = {f"vm{n}": handles[n % len(handles)] for n in range(chosen.disks)}
        job = JOB.format(size=SIZE)
        with daemon.start() as client:
            for disk, handle in names.items():
                tapcore.create_image(f"{handle}:{folder / disk}", SIZE)
                job += f"[{disk}]\nuri={client.attach(f'{handle}:{folder / disk}')['uri']}\n"
            before = {row["name"]: row["pid"] for row in client.disks()}
        (folder / "job.fio").write_text(job)
        fio = subprocess.Popen(["fio", "job.fio"], cwd=folder, stdout=subprocess.PIPE, text=True)
        away = []
        for number in range(chosen.rounds):
            time.sleep(chosen.pause)
            assert fio.poll() is None, fio.communicate()[0]
            away.append(replace(daemon, kill=number % 2 == 1))
        time.sleep(chosen.pause)
        fio.terminate()
        out = fio.communicate()[0]
        with daemon.client() as client:
            rows = client.disks()
        after = {row["name"]: row["pid"] for row in rows}
        errors = [line for line in out.splitlines() if "err=" in line and "err= 0" not in line]
        print(f"{chosen.rounds} times without a daemon, {max(away):.2f} s at most")
        print(f"fio: {len(names)} jobs, jobs with errors: {len(errors)}")
        print(
            f"the same processes: {before == after}; restarts: {sum(r['restarts'] for r in rows)}"
        )
        print(f"states: { {row['state'] for row in rows} }")
        status = daemon.end()
        print(f"end of the daemon: {status}")
        served = all(row["state"] == "serving" for row in rows)
        return 0 if not errors and before == after and served and not status else 1


if __name__ == "__main__":
    sys.exit(main())
