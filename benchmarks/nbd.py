#!/usr/bin/env python3
"""Serve the same raw disk by tapdisk and by its peers, in turns, and print how they compare.

See README.md in this folder for how to read the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import disks
import procs
import report
import servers
import startup
from results import Results, Turn
from workloads import CACHED, ROWS, FioError, Row, fio_problem, run_fio

REPOSITORY = Path(__file__).resolve().parent.parent
RAMP_SECONDS = 0.5
FIO_START_SECONDS = 0.6  # for the estimate of how long a run takes


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare NBD servers on one raw disk.")
    parser.add_argument("--tapdisk", metavar="PATH", help="the command (default: .venv, PATH)")
    parser.add_argument("--rows", metavar="REGEX", default="", help="only these rows")
    parser.add_argument("--servers", metavar="REGEX", default="", help="only these servers")
    parser.add_argument("--rounds", metavar="N", type=int, default=3)
    parser.add_argument("--seconds", metavar="S", type=float, help="of each turn (default 3)")
    parser.add_argument("--quick", action="store_true", help="1 second a turn")
    parser.add_argument("--size", default="512M", help="of the disk (default 512M)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the disks lie")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument("--no-startup", action="store_true", help="leave out start-up times")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--list", action="store_true", help="name the rows and servers, and exit")
    args = parser.parse_args()
    if args.seconds is None:
        args.seconds = 1.0 if args.quick else 3.0
    if not args.dir.is_dir():
        parser.error(f"{args.dir}: not a directory")
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    try:
        args.size = disks.parse_size(args.size)
        args.rows, args.servers = re.compile(args.rows), re.compile(args.servers)
    except (ValueError, re.error) as error:
        parser.error(str(error))
    return args


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _find_tapdisk(given: str | None) -> str | None:
    if given:
        found = servers.find_command(given)
        return str(Path(found).absolute()) if found else None
    own = REPOSITORY / ".venv" / "bin" / "tapdisk"
    return str(own) if own.exists() else servers.find_command("tapdisk")


def _commands(specs: list[servers.Spec], tapdisk: str | None) -> dict[str, str]:
    """The path of each server's command; one line names what is missing and left out."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for spec in specs:
        path = tapdisk if spec.ours else servers.find_command(spec.command)
        if path:
            found[spec.name] = path
        else:
            missing[spec.command] = spec.package
    if missing:
        names = ", ".join(f"{name} ({package})" for name, package in missing.items())
        _say(f"not installed, left out: {names}")
    return found


def _prepare(row: Row, server: servers.Server) -> None:
    """The same state of the page cache before each turn, and nothing left to be written back."""
    os.sync()
    if row.group == CACHED:
        disks.warm(server.file)
    else:
        disks.cool(server.file)


def _turn(row: Row, server: servers.Server, seconds: float) -> Turn:
    # The ramp is a run of its own: with fio's ramp_time the CPU time would count requests that
    # fio's report leaves out.
    run_fio(row, server.uri, min(RAMP_SECONDS, seconds))
    procs.reset_peak(server.pid)
    before = procs.cpu_seconds(server.pid)
    fio = run_fio(row, server.uri, seconds)
    cpu = procs.cpu_seconds(server.pid) - before
    return Turn(fio, cpu / fio.ios * 1e6, procs.peak_rss(server.pid))


def _turns(
    rows: list[Row], running: list[servers.Server], rounds: int
) -> Iterator[tuple[int, Row, servers.Server]]:
    """Every row in every round by every server, who begins changing from turn to turn."""
    for round_ in range(rounds):
        for row in rows:
            able = [server for server in running if server.spec.group == row.group]
            first = round_ % len(able) if able else 0
            for server in able[first:] + able[:first]:
                yield round_, row, server


def _measure(args: argparse.Namespace, results: Results, running: list[servers.Server]) -> None:
    turns = list(_turns(results.rows, running, args.rounds))
    estimate = len(turns) * (args.seconds + RAMP_SECONDS + 2 * FIO_START_SECONDS)
    _say(f"{len(turns)} turns, about {estimate / 60:.0f} minutes and what write-back takes")
    lost: set[str] = set()
    for number, (round_, row, server) in enumerate(turns, 1):
        if server.name in lost:
            continue
        where = f"round {round_ + 1}, {row.name}, {server.name}"
        try:
            server.check()
            _prepare(row, server)
            turn = _turn(row, server, args.seconds)
            server.check()
        except (FioError, servers.ServerError, OSError) as error:
            results.problems.append(f"{where}: {error}")
            _say(f"  {where}: {error}")
            try:
                server.check()
            except servers.ServerError:
                lost.add(server.name)
            continue
        results.add(row, server.name, round_, turn)
        _say(
            f"  [{number}/{len(turns)}] {where}: {turn.fio.iops:,.0f} IOPS, "
            f"{turn.fio.mb_s:,.0f} MB/s, {turn.cpu_us:.1f} us CPU/request"
        )


def _host() -> dict[str, object]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


def _check_room(args: argparse.Namespace, count: int) -> None:
    need = args.size * count
    free = shutil.disk_usage(args.dir).free
    if need > free:
        raise SystemExit(f"{args.dir}: {count} disks need {need >> 20} MiB, {free >> 20} are free")
    if need > procs.available_memory() * 0.7:
        _say("warning: the disks may not all fit in the page cache; use a smaller --size")


def _run(args: argparse.Namespace) -> int:
    specs = [spec for spec in servers.SPECS if args.servers.search(spec.name)]
    rows = [row for row in ROWS if args.rows.search(row.name)]
    if problem := fio_problem():
        raise SystemExit(problem)
    tapdisk = _find_tapdisk(args.tapdisk)
    commands = _commands(specs, tapdisk)
    groups = {row.group for row in rows}
    specs = [spec for spec in specs if spec.name in commands and spec.group in groups]
    if not specs:
        raise SystemExit("nothing to measure: no such row, or no such server")
    _check_room(args, len(specs))
    versions = {
        Path(path).name: servers.version(path)
        for path in dict.fromkeys([*(commands[spec.name] for spec in specs), "fio"])
    }
    for name, version in versions.items():
        _say(f"{name}: {version}")
    host = _host() | {"versions": versions}
    results = Results(rows, [spec.name for spec in specs if spec.ours])
    starts: list[startup.Start] = []
    status = 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbd-bench-")))
        data = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="nbd-bench-", dir=args.dir))
        )
        try:
            running = []
            for spec in specs:
                file = data / f"{spec.name}.img"
                disks.make(file, args.size)
                if tapdisk and not starts and spec.ours and not args.no_startup:
                    starts = _startup(tapdisk, file, results)
                try:
                    server = servers.Server(spec, commands[spec.name], file, folder)
                except (servers.ServerError, OSError) as error:
                    results.problems.append(f"{spec.name}, left out: {error}")
                    _say(f"  {results.problems[-1]}")
                    continue
                running.append(stack.enter_context(server))
            _measure(args, results, running)
        except KeyboardInterrupt:
            _say("interrupted; this is what was measured")
            status = 130
    return _finish(args, results, starts, host) or status


def _startup(tapdisk: str, file: Path, results: Results) -> list[startup.Start]:
    try:
        return startup.measure(tapdisk, file)
    except (startup.StartError, OSError) as error:
        results.problems.append(f"start-up: {error}")
        _say(f"  {results.problems[-1]}")
        return []


def _finish(
    args: argparse.Namespace,
    results: Results,
    starts: list[startup.Start],
    host: dict[str, object],
) -> int:
    report.show_rows(results)
    report.show_memory(results)
    if starts:
        report.show_startup(starts)
    below = results.below() + [
        f"{start.command}: {start.over_python_ms:+.0f} ms, target +{start.target_ms:.0f} ms"
        for start in starts
        if not start.ok
    ]
    if below:
        print("\nbelow target:")
    elif any(results.holds(row, name) for row in results.rows for name in results.ours):
        print("\nevery target that was measured holds")
    for line in below:
        print(f"  {line}")
    if results.problems:
        print("\nfailed:")
    for line in results.problems:
        print(f"  {line}")
    if args.json:
        settings = {"rounds": args.rounds, "seconds": args.seconds, "size": args.size}
        figures = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": host,
            "settings": settings,
            "rows": results.as_json(),
            "peak_rss": {name: results.peak_rss(name) for name in results.seen()},
            "startup": [
                {"command": s.command, "ms": s.median_ms, "over_python_ms": s.over_python_ms}
                for s in starts
            ],
            "below": below,
            "problems": results.problems,
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if results.problems or (args.check and below) else 0


def _on_signal(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # through the context managers, which stop the servers


def main() -> int:
    args = _arguments()
    if args.list:
        print("rows:", *(row.name for row in ROWS), sep="\n  ")
        print("servers:", *(spec.name for spec in servers.SPECS), sep="\n  ")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _on_signal)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
