#!/usr/bin/env python3
"""A daemon whose processes are killed under load: who notices, what is lost, what `list` says.

    python benchmarks/daemon_soak.py [--rounds 8] [--seconds 6] [--disks 20] [--deaths 3] [--seed N]

First eight disks of different drivers, each under fio that verifies what it reads, and under a
client that writes down what it has flushed. In each round one process gets SIGKILL at a random
moment: the seven others must see no error; the eighth must be served again, with all that was
flushed. Meanwhile `list` is asked all the time, and each answer compared with the processes that
there are. Then many disks under load, while the daemon itself gets SIGKILL and is started again.

Ends with 1 at the first thing that is not so. The seed makes the same plan again, not the same
moments.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from daemons import RunningDaemon, daemon_in  # noqa: E402
from watching import (  # noqa: E402
    BLOCK,
    DISK,
    FORMATS,
    LEDGER,
    PATIENCE,
    STAMP,
    Failed,
    Ledger,
    Watch,
    check,
    is_alive,
)

import tapcore  # noqa: E402
from tapcore.daemon.client import DaemonClient  # noqa: E402

# ---- fio ---------------------------------------------------------------------------------------


def fio(
    folder: Path, name: str, uri: str, seconds: float, seed: int, depth: int = 8
) -> subprocess.Popen[str]:
    """Random reads and writes behind the ledger, verified; ends with an error at the first one."""
    words = [
        "fio",
        f"--name={name}",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--rw=randrw",
        "--bsrange=4k-64k",
        "--blockalign=4k",
        f"--iodepth={depth}",
        f"--offset={LEDGER}",
        f"--size={DISK - LEDGER}",
        f"--runtime={seconds:g}",
        "--time_based",
        "--verify=crc32c",
        "--verify_backlog=64",
        "--serialize_overlap=1",
        "--fsync=32",
        f"--randseed={seed}",
        "--thread",
    ]
    return subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ends_well(process: subprocess.Popen[str], name: str, seconds: float) -> None:
    """It has ended without an error."""
    out, _ = process.communicate(timeout=seconds + 120)
    check(process.returncode == 0 and "err= 0" in out, f"{name}: fio: {out[-1500:]}")


# ---- one process dies --------------------------------------------------------------------------


def one_of_eight_dies(daemon: RunningDaemon, folder: Path, chosen: argparse.Namespace) -> None:
    """The first part."""
    rng = random.Random(chosen.seed)
    client = daemon.start()
    uris: dict[str, str] = {}
    for name in FORMATS:
        image = f"{name}:{folder / f'eight.{name}'}"
        tapcore.create_image(image, DISK)
        uris[name] = client.attach(image, name=name)["uri"]
    ledgers = {name: Ledger(name, uri, chosen.seed) for name, uri in uris.items()}
    watch = Watch(daemon.run_dir)
    for ledger in ledgers.values():
        ledger.start()
    while not all(ledger.flushed or ledger.error for ledger in ledgers.values()):
        time.sleep(0.01)
    watch.start()
    victims = [FORMATS[n % len(FORMATS)] for n in range(chosen.rounds)]
    rng.shuffle(victims)
    for number, victim in enumerate(victims):
        _round(client, folder, uris, ledgers, watch, victim, rng, chosen)
        told = {row["name"]: row["restarts"] for row in client.disks()}
        expected = Counter(victims[: number + 1])
        check(told == {name: expected[name] for name in FORMATS}, f"restarts: {told}")
    for ledger in ledgers.values():
        ledger.may_end = False
    watch.stop()
    for ledger in ledgers.values():
        ledger.stop()
    _last_look(client, folder, uris, ledgers)
    lists = ", ".join(f"{state} {n}" for state, n in sorted(Counter(_states(watch)).items()))
    writes = sum(ledger.number for ledger in ledgers.values())
    print(
        f"one of eight dies: {chosen.rounds} rounds, {writes} numbered writes, "
        f"{sum(ledger.ends for ledger in ledgers.values())} connections made again, "
        f"the list asked {watch.asked} times ({lists})"
    )
    client.close()


def _states(watch: Watch) -> Iterator[str]:
    for (_, state), count in watch.states.items():
        yield from [state] * count


def _round(
    client: DaemonClient,
    folder: Path,
    uris: dict[str, str],
    ledgers: dict[str, Ledger],
    watch: Watch,
    victim: str,
    rng: random.Random,
    chosen: argparse.Namespace,
) -> None:
    load = {
        name: fio(folder, name, uri, chosen.seconds, rng.randrange(1 << 30))
        for name, uri in uris.items()
    }
    time.sleep(chosen.seconds * rng.uniform(0.2, 0.7))
    before = _row(client, victim)
    ledger = ledgers[victim]
    watch.dying.add(victim)
    ledger.may_end = True
    ends = ledger.ends
    killed = time.monotonic()
    os.kill(before["pid"], signal.SIGKILL)
    while True:
        row = _row(client, victim)
        if row["state"] == "serving" and row["restarts"] > before["restarts"] and row["clients"]:
            break
        check(time.monotonic() - killed < PATIENCE, f"{victim} is not served again: {row}")
        time.sleep(0.01)
    back = time.monotonic() - killed
    check(row["pid"] != before["pid"] and is_alive(row["pid"]), f"{victim}: {row}")
    while ledger.ends == ends and not ledger.error:
        time.sleep(0.01)
    number = ledger.number
    while ledger.number < number + 50 and not ledger.error:  # it has verified, and goes on
        time.sleep(0.01)
    check(not ledger.error, f"{victim}: {ledger.error}")
    (stats,) = client.stats(victim)
    check(stats["uptime"] < time.monotonic() - killed, f"stats: {victim}: {stats}")
    ledger.may_end = False
    watch.dying.discard(victim)
    died = load.pop(victim)
    died.communicate(timeout=chosen.seconds + 120)
    ends_well(fio(folder, victim, uris[victim], 2, rng.randrange(1 << 30)), victim, 2)
    for name, process in load.items():
        ends_well(process, name, chosen.seconds)
    for each in ledgers.values():
        check(not each.error, f"{each.name}: {each.error}")
    check(not watch.error, f"the list: {watch.error}")
    print(f"  {victim}: served again after {back:.2f} s; seven others without an error", flush=True)


def _row(client: DaemonClient, name: str) -> dict[str, Any]:
    return next(row for row in client.disks() if row["name"] == name)


def _last_look(
    client: DaemonClient, folder: Path, uris: dict[str, str], ledgers: dict[str, Ledger]
) -> None:
    """Once all is closed: each image is whole, and has what was flushed."""
    for name in uris:
        _until_unused(client, name)
        client.detach(name)
    for name, ledger in ledgers.items():
        image = f"{name}:{folder / f'eight.{name}'}"
        with tapcore.open(image) as disk:
            for block, number in ledger.flushed.items():
                stamp = disk.pread(block * BLOCK, length=STAMP.size)
                check(stamp == STAMP.pack(block, number), f"{name}: block {block} after the end")
        if "check" in tapcore.Registry().get(name).capabilities:
            done = subprocess.run(
                [Path(sys.executable).parent / "tapdisk", "check", image],
                capture_output=True,
                text=True,
            )
            leaks_only = done.returncode in (0, 3)
            check(leaks_only, f"{name}: check says {done.returncode}: {done.stdout}{done.stderr}")


def _until_unused(client: DaemonClient, name: str) -> None:
    end = time.monotonic() + PATIENCE
    while _row(client, name)["clients"]:
        check(time.monotonic() < end, f"{name}: its clients do not go")
        time.sleep(0.01)


# ---- the daemon dies ---------------------------------------------------------------------------


def the_daemon_dies(daemon: RunningDaemon, folder: Path, chosen: argparse.Namespace) -> None:
    """The second part: disks under load go on while their daemon is killed and comes back."""
    rng = random.Random(chosen.seed + 1)
    client = daemon.start()
    disks = {}
    for number in range(chosen.disks):
        name = f"vm{number}"
        image = f"qcow2:{folder / f'{name}.qcow2'}"
        tapcore.create_image(image, DISK)
        disks[name] = client.attach(image, name=name)
    seconds = 4.0 + 4.0 * chosen.deaths
    load = {
        name: fio(folder, name, disk["uri"], seconds, rng.randrange(1 << 30), depth=2)
        for name, disk in disks.items()
    }
    ledgers = [Ledger(name, disk["uri"], chosen.seed) for name, disk in disks.items()]
    for ledger in ledgers:
        ledger.start()
    pids = {name: disk["pid"] for name, disk in disks.items()}
    for number in range(chosen.deaths):
        time.sleep(rng.uniform(0.5, 3.0))
        client.close()
        daemon.kill()
        time.sleep(rng.uniform(0.0, 0.5))
        begun = time.monotonic()
        client = daemon.start()
        rows = {row["name"]: row for row in client.disks()}
        took = time.monotonic() - begun
        check({name: row["pid"] for name, row in rows.items()} == pids, f"found again: {rows}")
        check(all(row["state"] == "serving" for row in rows.values()), f"found again: {rows}")
        print(f"  death {number + 1}: all {len(rows)} disks found after {took:.2f} s", flush=True)
    for name, process in load.items():
        ends_well(process, name, seconds)
    for ledger in ledgers:
        ledger.stop()
    check(sum(ledger.ends for ledger in ledgers) == 0, "a connection has ended")
    writes = sum(ledger.number for ledger in ledgers)
    print(
        f"the daemon dies {chosen.deaths} times: {len(disks)} disks under fio, "
        f"{writes} numbered writes, no error"
    )
    for name in disks:
        _until_unused(client, name)
        client.detach(name)
    client.close()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="deaths of one of the eight disks")
    parser.add_argument("--seconds", type=float, default=6.0, help="of fio in each round")
    parser.add_argument("--disks", type=int, default=20, help="while the daemon dies")
    parser.add_argument("--deaths", type=int, default=3, help="of the daemon")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    chosen = parser.parse_args(words)
    print(f"seed {chosen.seed}", flush=True)
    for part in (one_of_eight_dies, the_daemon_dies):
        with tempfile.TemporaryDirectory() as name, daemon_in(Path(name)) as daemon:
            try:
                part(daemon, Path(name), chosen)
            except Failed as exc:
                print(f"{part.__name__}: {exc}\n{daemon.log[-3000:]}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
