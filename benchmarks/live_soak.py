#!/usr/bin/env python3
"""Live changes of every kind of served disk at random moments, under fio that verifies every block.

fio writes through NBD, four connections, and reads back what it has written with crc32c sums; one
more client trims and zeroes as well, in the rest of the disk, of which it keeps account (fio's own
trims beside `verify` make it abort). Meanwhile the disk is paused and resumed, gets live snapshots
and internal ones, is folded into its parent (some of these commits are cancelled), grows, shrinks,
and is swapped for a copy, which another program may have made. Images are checked whenever nobody
has them open, and at the end QEMU reads the content. What a kind of disk lacks is asked for, too,
and told. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from livedaemon import DaemonCalls, daemon_disk
from livekeeper import Keeper

import tapcore
from tapcore.interface.options import CacheMode
from tapcore.live import Live, LiveCalls

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import livekinds
from livechanges import Changes, Image
from livekinds import KINDS, Kind

MIB = 1 << 20
ROOM = 8 * MIB
"""That a disk may grow by."""

_AS_LONG_AS_IT_TAKES = 36000
_WRONG = (AssertionError, tapcore.TapError, OSError, EOFError)


class SoakError(Exception):
    """Something was wrong: a verify error, a check that failed, a change that did."""


@dataclass
class Load:
    """fio, and the client that keeps account of what is behind its part.

    Attributes:
        fio: the process.
        keeper: the other client.
        log: where fio reports.
    """

    fio: subprocess.Popen[str]
    keeper: Keeper
    log: Path

    def must_go_on(self) -> None:
        if self.fio.poll() is not None:
            raise SoakError(f"fio ended with {self.fio.returncode}")
        if self.keeper.error:
            raise SoakError(self.keeper.error)

    def end(self) -> str:
        """Let both finish what they verify; returns what they have found."""
        if self.fio.poll() is None:
            self.fio.terminate()
        said, _ = self.fio.communicate(timeout=120)
        bad = [line for line in said.splitlines() if "verify" in line or "error" in line.lower()]
        self.keeper.end()
        # fio tells of its own end by a signal with status 128, without an error of a job
        wrong = bad or self.fio.returncode not in (0, 128)
        return (f" fio: {self.fio.returncode}: {bad[:5]}" if wrong else "") + self.keeper.error

    def figures(self) -> str:
        """How much was done."""
        text = self.log.read_text() if self.log.exists() else ""
        jobs = json.loads(text[text.index("{") :])["jobs"] if "{" in text else []
        ios = sum(job[way]["total_ios"] for job in jobs for way in ("read", "write"))
        if any(job["error"] for job in jobs):
            raise SoakError(f"fio: {[job['error'] for job in jobs]}")
        return f"{ios:>7} {self.keeper.done:>7} {self.keeper.trims:>6}"


def load(uri: str, size: int, arguments: argparse.Namespace, seed: int, folder: Path) -> Load:
    """Begin: fio in the first two thirds of the disk, a part for each of its connections."""
    share = size * 2 // 3 // arguments.jobs // MIB * MIB
    log = folder / "fio.json"
    command = [
        "fio", "--name=live", "--ioengine=nbd", f"--uri={uri}", f"--numjobs={arguments.jobs}",
        "--thread", "--rw=randrw", "--rwmixread=20", "--bsrange=4k-64k", "--bs_unaligned=0",
        "--iodepth=8", f"--size={share}", f"--offset_increment={share}", f"--randseed={seed}",
        "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--verify_dump=0",
        "--verify_state_save=0", "--fsync=200",
        "--time_based", f"--runtime={_AS_LONG_AS_IT_TAKES}", "--group_reporting",
        "--output-format=json", f"--output={log}",
    ]  # fmt: skip
    keeper = Keeper(uri, share * arguments.jobs, size, random.Random(seed))
    fio = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    keeper.start()
    return Load(fio, keeper, log)


def soak(kind: Kind, cache: CacheMode, seed: int, arguments: argparse.Namespace) -> None:
    """Serve, load, change, look: one kind of disk in one mode."""
    rng, size = random.Random(f"{seed} {kind.name} {cache}"), arguments.size * MIB
    with tempfile.TemporaryDirectory(prefix="live-soak-", dir=arguments.dir) as where:
        folder = Path(where)
        first = livekinds.make(kind, folder, size)
        if cache in kind.lacks:
            print(f"{kind.name:<23}{cache:<10}  refused: {refusal(kind, first, folder, cache)}")
            return
        served = daemon_disk if arguments.daemon else served_here
        begun = time.monotonic()
        with served(kind, first, folder, cache) as (calls, uri):
            work = load(uri, size, arguments, seed, folder)
            state = Changes(
                calls, kind, folder, rng, [Image(first, size)], size * 5 // 6, size + ROOM,
                work.keeper.resized, lambda part: time.sleep(part * 0.1),
            )  # fmt: skip
            problem = change_under(work, state, arguments)
            if not problem:
                read = look(state, uri, folder)
        took = time.monotonic() - begun
        if problem:
            raise SoakError(problem)
        state.check()
        raw = folder / "content.raw"
        if kind.handle != "ram":
            read += livekinds.same_in_qemu(kind, state.image.name, raw, child=state.is_child)
        report(kind, cache, work, state, read, took)


def look(state: Changes, uri: str, folder: Path) -> int:
    """At the content, as the server reads it and as QEMU does; returns how often that could."""
    kind, raw = state.kind, folder / "content.raw"
    livekinds.run("nbdcopy", uri, str(raw))
    if kind.handle == "ram":
        return 0
    state.calls.pause("")
    read = livekinds.same_in_qemu(kind, state.image.name, raw, child=state.is_child)
    state.calls.resume("")
    state.resized = lambda new, old: None
    state.fold()
    raw.unlink()
    livekinds.run("nbdcopy", uri, str(raw))
    return int(read)


def change_under(work: Load, state: Changes, arguments: argparse.Namespace) -> str:
    """The changes; returns what went wrong."""
    problem = ""
    try:
        for number in range(arguments.changes):
            time.sleep(state.rng.random() * arguments.gap)
            work.must_go_on()
            kind = state.change()
            if arguments.verbose:
                print(f"{number}: {kind}, {len(state.chain)} images", file=sys.stderr)
    except (SoakError, *_WRONG) as exc:
        problem = f"change {number}: {type(exc).__name__}: {exc}"
        work.fio.kill()  # its requests may wait for ever now
    return problem + work.end()


def refusal(kind: Kind, image: str, folder: Path, cache: CacheMode) -> str:
    """What is said instead of serving it."""
    words = [str(Path(sys.executable).parent / "tapdisk"), "serve", image, "--cache", cache]
    done = subprocess.run(
        [*words, "--socket", str(folder / "s")], capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    if done.returncode != 1 or len(lines) != 1:
        raise SoakError(f"{kind.name}, {cache}: {done.returncode}, {done.stderr}")
    return lines[0]


@contextlib.contextmanager
def served_here(
    kind: Kind, image: str, folder: Path, cache: CacheMode
) -> Iterator[tuple[LiveCalls | DaemonCalls, str]]:
    """Serve it in a thread of this process."""
    address = tapcore.UnixAddress(str(folder / "s"))
    server = tapcore.nbd_server([image], address, cache=cache, keys=livekinds.keys(kind))
    calls = LiveCalls(Live(server))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield calls, server.uris()[0]
    finally:
        stop(server, thread)


def stop(server: tapcore.NbdServer, thread: threading.Thread) -> None:
    """As a signal would."""
    ended = os.eventfd(1)
    server.stop_when(ended)
    thread.join(120)
    if thread.is_alive():
        raise SoakError("the server does not stop")
    os.close(ended)


def report(
    kind: Kind, cache: CacheMode, work: Load, state: Changes, read: int, took: float
) -> None:
    """A line of figures, and one of what this kind refused."""
    made = sum(count for what, count in state.done.items() if "refused" not in what)
    print(
        f"{kind.name:<23}{cache:<10} {work.figures()} {made:>7} {state.checks:>6} {read:>5} "
        f"{took:>6.0f}  ok"
    )
    done = ", ".join(f"{what} {count}" for what, count in sorted(state.done.items()))
    print(f"    {done}")
    for what, text in kind.lacks.items():
        if what not in ("writeback", "none"):
            print(f"    there is no {what}: {text}")
    if not kind.qemu and kind.handle != "ram":
        print("    QEMU does not read it: its content was read by tapdisk alone")
    sys.stdout.flush()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=100, help="of each disk")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of: %(default)s")
    parser.add_argument("--size", type=int, default=48, help="of the disk, MiB")
    parser.add_argument("--jobs", type=int, default=4, help="connections of fio")
    parser.add_argument("--gap", type=float, default=0.3, help="seconds between changes, at most")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--dir", help="where the images lie")
    parser.add_argument("--cache", default="writeback,none", help="of: %(default)s")
    parser.add_argument("--daemon", action="store_true", help="in a process of a daemon")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    print("kind                   cache         fio  keeper  trims changes checks  QEMU      s")
    failed = 0
    for name in arguments.kinds.split(","):
        for cache in arguments.cache.split(","):
            try:
                soak(KINDS[name], cache, arguments.seed, arguments)
            except (SoakError, *_WRONG) as exc:
                failed += 1
                print(f"{name:<23}{cache:<10}  FAILED: {exc}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
