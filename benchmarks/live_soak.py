#!/usr/bin/env python3
"""Live changes of a served disk at random moments, under fio that verifies every block.

fio writes through NBD, four jobs, and reads back what it has written with crc32c sums. Meanwhile
the disk is paused and resumed, gets live snapshots, is folded into its parent (some of these
commits are cancelled), grows, and is swapped for a copy that another program made while it was
paused. While it is paused `qemu-img check` and `tapdisk check` look at its chain. See README.md in
this folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from livedaemon import DaemonCalls, daemon_disk

import tapcore
from tapcore.interface.options import CacheMode
from tapcore.live import Live, LiveCalls

MIB = 1 << 20
TAPDISK = Path(sys.executable).parent / "tapdisk"

CHECKED_BY_QEMU = {"qcow2", "vmdk", "vhdx", "vdi"}
NOTHING_TO_CHECK = {"qcow"}
ALONE_IN_QEMU = {"vdi", "vhdx"}
"""It opens no differencing images of these."""

MADE_BY_QEMU = {"qcow2", "vmdk", "vdi", "qcow"}
"""Copies of the whole disk that another program can make, for a swap."""

LONGEST_CHAIN = {"qcow": 2}
"""Of formats that do not record their parent's: it is guessed, and then may have none itself."""

LONGEST_OF_OTHERS = 4
_AS_LONG_AS_IT_TAKES = 36000


class SoakError(Exception):
    """Something was wrong: a verify error, a check that failed, a change that did."""


@dataclass
class Soak:
    """One run.

    Attributes:
        calls: the changes.
        folder: of the images.
        handle: of the images that are made.
        rng: seeded.
        image: what is served at the moment, `HANDLE:PATH`.
        chain: all its images, child first.
        done: how often each change was made.
        slowest: seconds of the longest change of each kind.
    """

    calls: LiveCalls | DaemonCalls
    folder: Path
    handle: str
    rng: random.Random
    image: str
    chain: list[str]
    number: int = 0
    checks: int = 0
    done: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Images in its chain."""
        return len(self.chain)

    # ---- one change -------------------------------------------------------------------------

    def change(self) -> str:
        """Make one at random; returns which."""
        kinds = ["pause", "swap"]
        if self.depth < LONGEST_CHAIN.get(self.handle, LONGEST_OF_OTHERS):
            kinds += ["snapshot", "snapshot"]
        if self.depth > 1:
            kinds += ["commit", "commit", "cancel"]
        if self.handle == "qcow2":
            kinds.append("grow")
        kind = self.rng.choice(kinds)
        begun = time.monotonic()
        getattr(self, f"_{kind}")()
        took = time.monotonic() - begun
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), took)
        self.done[kind] += 1
        return kind

    def _new(self) -> str:
        self.number += 1
        return f"{self.handle}:{self.folder / f'{self.number}.{self.handle}'}"

    def _pause(self) -> None:
        self.calls.pause("")
        self.check()
        time.sleep(self.rng.random() * 0.05)
        self.calls.resume("")

    def _grow(self) -> None:
        """Children grow alone; their parents do when they are folded into them."""
        self.calls.resize("", "+1M")

    def _snapshot(self) -> None:
        child = self._new()
        self.image = self.calls.snapshot("", child)["image"]
        self.chain.insert(0, child)

    def _commit(self) -> None:
        told = self.calls.commit("")
        gone = self.chain.pop(0)
        self.image = told["image"]
        if told["image"] != self.chain[0]:
            raise SoakError(f"{told['image']} is served after a commit, not {self.chain[0]}")
        check_image(gone, self.handle, child=True, in_use=True)
        Path(path_of(gone)).unlink()

    def _cancel(self) -> None:
        """At a random moment; it may have ended before."""
        self.calls.begin_commit("")
        time.sleep(self.rng.random() * 0.2)
        try:
            self.calls.cancel_commit("")
        except tapcore.TapError as exc:
            if "done" not in str(exc):
                raise
        while (told := self.calls.commit_progress(""))["phase"] in ("copying", "finishing"):
            time.sleep(0.01)
        if told["phase"] == "done":
            self.done["cancelled too late"] += 1
            Path(path_of(self.chain.pop(0))).unlink()
        elif told["phase"] != "cancelled":
            raise SoakError(f"a commit was to be cancelled, and is {told}")
        self.image = self.calls.state("")["image"]

    def _swap(self) -> None:
        """For a copy of the whole that is made while nothing is open."""
        self.calls.pause("")
        copy = self._new()
        old = self.image
        alone = self.depth == 1 or self.handle not in ALONE_IN_QEMU
        if self.handle in MADE_BY_QEMU and alone and self.rng.random() < 0.5:
            form = ["-f", self.handle, "-O", self.handle]
            run("qemu-img", "convert", *form, path_of(old), path_of(copy))
        else:
            run(str(TAPDISK), "convert", "-q", old, copy)
        check_image(copy, self.handle)
        self.image = self.calls.swap("", copy)["image"]
        for each in self.chain:
            Path(path_of(each)).unlink()
        self.chain = [copy]

    # ---- looking ----------------------------------------------------------------------------

    def check(self) -> None:
        """All images of the chain, which nobody has open."""
        for image in self.chain:
            check_image(image, self.handle, child=image != self.chain[-1])
            self.checks += 1


def path_of(image: str) -> str:
    return image.partition(":")[2]


def check_image(image: str, handle: str, *, child: bool = False, in_use: bool = False) -> None:
    """By tapdisk, and by qemu-img where that can.

    Args:
        image: `HANDLE:PATH`.
        handle: of it.
        child: it has a parent.
        in_use: which somebody has open.
    """
    if handle not in NOTHING_TO_CHECK:
        run(str(TAPDISK), "check", "-q", image)
    if handle in CHECKED_BY_QEMU and not (child and handle in ALONE_IN_QEMU):
        shared = ["-U"] if in_use else []
        run("qemu-img", "check", "-q", *shared, "-f", handle, path_of(image))


def run(*command: str) -> None:
    """Raise where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SoakError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")


def fio(uri: str, size: int, jobs: int, seed: int, log: Path) -> subprocess.Popen[str]:
    """Writers that verify what they have written, each in a part of the disk of its own."""
    share = size // jobs
    command = [
        "fio", "--name=live", "--ioengine=nbd", f"--uri={uri}", f"--numjobs={jobs}", "--thread",
        "--rw=randrw", "--rwmixread=20", "--bsrange=4k-64k", "--bs_unaligned=0", "--iodepth=8",
        f"--size={share}", f"--offset_increment={share}", f"--randseed={seed}",
        "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--verify_dump=0",
        "--fsync=200", "--time_based", f"--runtime={_AS_LONG_AS_IT_TAKES}", "--group_reporting",
        "--output-format=json", f"--output={log}",
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=log.parent
    )


def soak(arguments: argparse.Namespace) -> None:
    """Serve, load, change, look."""
    rng = random.Random(arguments.seed)
    size = arguments.size * MIB
    with tempfile.TemporaryDirectory(prefix="live-soak-", dir=arguments.dir) as where:
        folder = Path(where)
        first = f"{arguments.format}:{folder / f'0.{arguments.format}'}"
        tapcore.create_image(first, size)
        served = daemon_disk if arguments.daemon else served_here
        log = folder / "fio.json"
        problem = ""
        with served(first, folder, arguments.cache) as (calls, uri):
            state = Soak(calls, folder, arguments.format, rng, first, [first])
            load = fio(uri, size, arguments.jobs, arguments.seed, log)
            problem, took = change_under(load, state, arguments)
        report(arguments, state, log, took, problem)
        state.check()


@contextlib.contextmanager
def served_here(image: str, folder: Path, cache: CacheMode) -> Iterator[tuple[LiveCalls, str]]:
    """Serve it in a thread of this process."""
    address = tapcore.UnixAddress(str(folder / "s"))
    server = tapcore.nbd_server([image], address, cache=cache)
    calls = LiveCalls(Live(server))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield calls, server.uris()[0]
    finally:
        stop(server, thread)


def change_under(
    load: subprocess.Popen[str], state: Soak, arguments: argparse.Namespace
) -> tuple[str, float]:
    """The changes; returns what went wrong, and how long they took."""
    rng, problem = state.rng, ""
    begun = time.monotonic()
    try:
        for number in range(arguments.changes):
            time.sleep(rng.random() * arguments.gap)
            if load.poll() is not None:
                raise SoakError(f"fio ended with {load.returncode}")
            kind = state.change()
            if arguments.verbose:
                print(f"{number}: {kind}, {state.depth} images", file=sys.stderr)
    except (SoakError, tapcore.TapError) as exc:
        problem = f"change {number}: {exc}"
        load.kill()  # its requests may wait for ever now
    took = time.monotonic() - begun
    return problem + end_load(load), took


def end_load(load: subprocess.Popen[str]) -> str:
    """Let fio finish what it verifies; returns what it has found."""
    if load.poll() is None:
        load.terminate()
    said, _ = load.communicate(timeout=120)
    bad = [line for line in said.splitlines() if "verify" in line or "error" in line.lower()]
    # fio tells of its own end by a signal with status 128, without an error of a job
    return f" fio: {load.returncode}: {bad[:5]}" if bad or load.returncode not in (0, 128) else ""


def stop(server: tapcore.NbdServer, thread: threading.Thread) -> None:
    """As a signal would."""
    ended = os.eventfd(1)
    server.stop_when(ended)
    thread.join(120)
    if thread.is_alive():
        raise SoakError("the server does not stop")
    os.close(ended)


def report(
    arguments: argparse.Namespace, state: Soak, log: Path, took: float, problem: str
) -> None:
    """Figures, and whether all was well."""
    text = log.read_text() if log.exists() else ""
    jobs = json.loads(text[text.index("{") :])["jobs"] if "{" in text else []
    ios = sum(job[way]["total_ios"] for job in jobs for way in ("read", "write"))
    written = sum(job["write"]["io_kbytes"] for job in jobs) >> 10
    errors = sum(job["error"] != 0 for job in jobs)
    done = ", ".join(f"{count} {kind}" for kind, count in sorted(state.done.items()))
    slow = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in sorted(state.slowest.items()))
    print(f"{arguments.format}, seed {arguments.seed}: {done} in {took:.0f} s")
    print(f"  longest: {slow}")
    print(f"  fio: {ios} requests, {written} MiB written, {errors} jobs with errors")
    print(f"  checks of images while paused: {state.checks}, all clean")
    if problem:
        raise SoakError(problem)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--format", default="qcow2", help="handle of the images")
    parser.add_argument("--size", type=int, default=64, help="of the disk, MiB")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--gap", type=float, default=0.3, help="seconds between changes, at most")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--dir", help="where the images lie")
    parser.add_argument("--cache", choices=("writeback", "none"), default="writeback")
    parser.add_argument("--daemon", action="store_true", help="in a process of a daemon")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"seed {arguments.seed}", flush=True)
    try:
        soak(arguments)
    except SoakError as exc:
        print(f"FAILED: {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
