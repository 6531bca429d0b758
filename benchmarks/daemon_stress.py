#!/usr/bin/env python3
"""Many controllers of one daemon at once: attach, detach, list, reload, and killed processes.

    python benchmarks/daemon_stress.py [--seconds 20] [--controllers 6] [--seed 1]

Exit status 1 if a call fails that must not, or if a disk, a process, a descriptor or a file of the
run directory is left at the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from daemons import RunningDaemon, daemon_in, until  # noqa: E402
from nbd_client import Client  # noqa: E402

import tapcore  # noqa: E402

SIZE = 1 << 20
MOST = 4


class Controller(threading.Thread):
    """Does whatever comes to its mind with disks of its own."""

    def __init__(self, daemon: RunningDaemon, number: int, folder: Path, seed: int) -> None:
        super().__init__()
        self._client = daemon.client()
        self._random = random.Random(f"{seed}/{number}")
        self._folder = folder
        self._front = f"w{number}"
        self._disks: list[str] = []
        self._end = float("inf")
        self.calls = 0
        self.errors: list[str] = []

    def run_for(self, seconds: float) -> None:
        """Begin, and end after so long."""
        self._end = time.monotonic() + seconds
        self.start()

    def run(self) -> None:
        ways: list[Callable[[], None]] = [self._attach] * 4 + [self._detach] * 3
        ways += [self._look, self._kill, self._fail, self._reload]
        try:
            while time.monotonic() < self._end:
                self.calls += 1
                self._random.choice(ways)()
            while self._disks:
                self._detach()
        except Exception as exc:
            self.errors.append(f"{self._front}: {exc!r}")
        self._client.close()

    def _attach(self) -> None:
        if len(self._disks) == MOST:
            return
        name = f"{self._front}-{self.calls}"
        path = self._folder / name
        image = self._random.choice((f"qcow2:{path}", f"aio:{path}", "ram:1M"))
        if not image.startswith("ram"):
            tapcore.create_image(image, SIZE)
        disk = self._client.attach(image, name=name)
        self._disks.append(name)
        with Client(disk["uri"]) as guest:
            guest.write(0, b"x" * 512)
            guest.flush()

    def _detach(self) -> None:
        if not self._disks:
            return
        name = self._disks.pop(self._random.randrange(len(self._disks)))
        while True:
            try:
                self._client.detach(name, force=True)
                return
            except tapcore.TapError as exc:
                if "process died" in str(exc):  # it was killed meanwhile, and is detached
                    return
                if "is starting" not in str(exc) and "is closing" not in str(exc):
                    raise
            time.sleep(0.05)

    def _look(self) -> None:
        missing = {*self._disks} - {row["name"] for row in self._client.disks()}
        if missing:
            self.errors.append(f"list does not have {missing}")

    def _kill(self) -> None:
        for row in self._client.disks():
            if row["name"] in self._disks and row["process"] == row["name"]:
                if self._random.random() < 0.2:
                    with suppress(ProcessLookupError):
                        os.kill(row["pid"], signal.SIGKILL)
                return

    def _fail(self) -> None:
        try:
            self._client.attach("/nowhere/x", name=f"{self._front}-bad")
        except FileNotFoundError:
            return
        self.errors.append("what is not there was attached")

    def _reload(self) -> None:
        if self._random.random() < 0.1:
            self._client.reload()


def numbers(pid: int) -> list[str]:
    """Of a process's children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def children(pid: int) -> list[str]:
    """Names of a process's children; some may end meanwhile."""
    found = []
    for each in numbers(pid):
        with suppress(OSError):
            found.append(Path(f"/proc/{each}/comm").read_text().strip())
    return found


def open_files(pid: int) -> list[str]:
    """What a process has open."""
    folder = f"/proc/{pid}/fd"
    return sorted(os.readlink(f"{folder}/{each}") for each in os.listdir(folder))


def said(pid: str, daemon: RunningDaemon) -> str:
    """What is known of a process that should have ended: its state, and the last of its log."""
    found = []
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        found += [line for line in status if line.startswith(("Name", "State", "SigCgt", "SigPnd"))]
        found.append(Path(f"/proc/{pid}/wchan").read_text())
        log = Path(os.readlink(f"/proc/{pid}/fd/2").removesuffix(" (deleted)"))
        found += log.read_text().splitlines()[-5:]
    return f"{pid}: {found}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--controllers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, daemon_in(Path(name)) as daemon:
        with daemon.start() as client:
            client.disks()
            assert daemon.process is not None
            pid = daemon.process.pid
            descriptors = open_files(pid)
            everybody = [
                Controller(daemon, number, Path(name), chosen.seed)
                for number in range(chosen.controllers)
            ]
            for each in everybody:
                each.run_for(chosen.seconds)
            for each in everybody:
                each.join()
            errors = [error for each in everybody for error in each.errors]
            try:
                until(lambda: children(pid) == ["tapdisk warm"])
            except AssertionError:
                errors.append(f"left over: {children(pid)}")
                errors += [said(each, daemon) for each in numbers(pid)]
            try:
                until(lambda: len(open_files(pid)) == len(descriptors))
            except AssertionError:
                errors.append(f"{descriptors} were open, and are {open_files(pid)}")
            left = [row["name"] for row in client.disks()]
        for folder in ("disks", "nbd"):
            left += os.listdir(daemon.run_dir / folder)
        status = daemon.end()
        print(f"seed {chosen.seed}: {sum(each.calls for each in everybody)} calls")
        print(f"errors: {len(errors)} {errors[:5]}; left: {left}; exit status {status}")
        if errors or "Traceback" in daemon.log:
            print(daemon.log[-3000:])
        return 1 if errors or left or status or "Traceback" in daemon.log else 0


if __name__ == "__main__":
    sys.exit(main())
