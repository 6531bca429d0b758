"""Eight disks of different drivers under fio with verify; the process of one is killed, often.

    python benchmarks/killed_disks.py [--seconds 20] [--kills 5] [--seed 1]

Seven must see no error. The eighth is used by a client that connects again: whatever it has
flushed must be there. `list` must tell the truth meanwhile. Exit status 1 if any of that fails.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from daemons import daemon_in, until  # noqa: E402
from nbd_client import Client  # noqa: E402

import tapcore  # noqa: E402
from tapcore.daemon.client import DaemonClient  # noqa: E402

HANDLES = ("aio", "sync", "qcow", "vmdk", "vdi", "vhd", "vhdx", "qcow2")
SIZE = 64 << 20
BLOCK = 4096
JOB = """[global]
ioengine=nbd
rw=randwrite
bs=4k
iodepth=16
size={size}
time_based
runtime={seconds}
verify=crc32c
verify_backlog=256
verify_fatal=1
"""


class Writer(threading.Thread):
    """Writes numbers into blocks and flushes; after each end of its connection it looks at them."""

    def __init__(self, uri: str, seed: int) -> None:
        super().__init__()
        self._uri = uri
        self._random = random.Random(seed)
        self._number = 0
        self.may_be: dict[int, set[int]] = {}  # by block: what was flushed last, or written since
        self.flushes = self.reconnects = 0
        self.wrong: list[str] = []
        self.stop = False

    def run(self) -> None:
        while not self.stop and not self.wrong:
            try:
                with Client(self._uri) as client:
                    self._check(client)
                    while not self.stop:
                        self._round(client)
            except (OSError, EOFError, AssertionError):  # its connection has ended
                self.reconnects += 1

    def has_flushed(self, often: int) -> bool:
        """Whether it goes on, or is over."""
        return self.flushes >= often or bool(self.wrong)

    def _round(self, client: Client) -> None:
        written = {}
        for _ in range(8):
            self._number += 1
            block = self._random.randrange(SIZE // BLOCK)
            self.may_be.setdefault(block, {0}).add(self._number)
            client.write(block * BLOCK, self._number.to_bytes(8, "big") * (BLOCK // 8))
            written[block] = self._number
        client.flush()
        self.flushes += 1
        self.may_be.update((block, {last}) for block, last in written.items())

    def _check(self, client: Client) -> None:
        for block, allowed in self.may_be.items():
            data = client.read(block * BLOCK, BLOCK)
            found = {int.from_bytes(data[at : at + 8], "big") for at in range(0, BLOCK, 8)}
            if not found <= allowed:  # one that was being written may have some of its sectors
                self.wrong.append(f"block {block}: {found}, and it has to be of {allowed}")


def look(client: DaemonClient, names: set[str], lies: list[str], stop: threading.Event) -> None:
    """`list` and `stats`, as long as it goes on."""
    looks = 0
    while not stop.wait(0.2):
        looks += 1
        rows = {row["name"]: row for row in client.disks()}
        if {*rows} != names:
            lies.append(f"list has {sorted(rows)}")
        for row in rows.values():
            good = ("serving",) if row["name"] != "qcow2" else ("serving", "restarting")
            if row["state"] not in good:
                lies.append(f"{row['name']} is {row['state']}: {row['reason']}")
            if row["state"] == "serving" and not Path(f"/proc/{row['pid']}").exists():
                time.sleep(0.05)
                again = {each["name"]: each for each in client.disks()}[row["name"]]
                if again["pid"] == row["pid"] and again["state"] == "serving":
                    lies.append(f"{row['name']} is said to be served by {row['pid']}, who is dead")
        client.stats()
    print(f"list and stats: asked {looks} times, lies: {len(lies)}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name, daemon_in(Path(name)) as daemon:
        folder = Path(name)
        for handle in HANDLES:
            tapcore.create_image(f"{handle}:{folder / handle}", SIZE)
        client, looker = daemon.start(), DaemonClient(daemon.run_dir, timeout=60)
        uris = {h: client.attach(f"{h}:{folder / h}", name=h)["uri"] for h in HANDLES}
        job = JOB.format(size=SIZE, seconds=chosen.seconds)
        job += "".join(f"[{h}]\nuri={uris[h]}\n" for h in HANDLES if h != "qcow2")
        (folder / "job.fio").write_text(job)
        fio = subprocess.Popen(["fio", "job.fio"], cwd=folder, stdout=subprocess.PIPE, text=True)
        lies: list[str] = []
        writer, over = Writer(uris["qcow2"], chosen.seed), threading.Event()
        writer.start()
        watcher = threading.Thread(target=look, args=(looker, {*HANDLES}, lies, over))
        watcher.start()
        begun = time.monotonic()
        for number in range(chosen.kills):
            pause = chosen.seconds / (chosen.kills + 1)
            while time.monotonic() < begun + (number + 1) * pause + chance.random():
                time.sleep(0.01)
            enough = writer.flushes + 2
            os.kill(next(r["pid"] for r in client.disks() if r["name"] == "qcow2"), signal.SIGKILL)
            until(partial(writer.has_flushed, enough))
        out = fio.communicate()[0]
        over.set()
        watcher.join()
        writer.stop = True
        writer.join()
        errors = [line for line in out.splitlines() if "err=" in line and "err= 0" not in line]
        rows = {row["name"]: row for row in client.disks()}
        print(f"fio: exit status {fio.returncode}, jobs with errors: {len(errors)}")
        print(f"restarts: { {n: r['restarts'] for n, r in rows.items()} }")
        print(f"the eighth: {writer.flushes} flushes, {writer.reconnects} times connected again")
        print(f"wrong after a kill: {len(writer.wrong)} {writer.wrong[:3]}")
        status = daemon.end()
        print(f"end of the daemon: {status}")
        for handle in HANDLES:
            if handle not in ("aio", "sync", "qcow"):  # which have nothing to check
                done = subprocess.run(
                    [Path(sys.executable).parent / "tapdisk", "check", f"{handle}:{handle}"],
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                print(f"check {handle}: {done.returncode} {done.stdout.splitlines()[-1:]}")
        print(*lies[:10], sep="\n")
        good = not fio.returncode and not errors and not writer.wrong and not lies and not status
        return 0 if good and rows["qcow2"]["restarts"] == chosen.kills else 1


if __name__ == "__main__":
    sys.exit(main())
