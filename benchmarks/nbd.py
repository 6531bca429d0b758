#!/usr/bin/env python3
"""Serve the same disks by tapdisk and by its peers, in turns, and print how they compare.

See README.md in this folder for how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import disks
import lineup
import page
import procs
import report
import servers
import startup
from cases import CASES, QUICK, Case
from results import Results
from turns import CaseRun, Plan, say, taking_part
from workloads import Row, fio_problem

RAMP_SECONDS = 0.5
FIO_START_SECONDS = 0.6  # for the estimate of how long a run takes

FULL: dict[str, Any] = {"rounds": 3, "seconds": 1.0, "size": "512M"}
SHORT: dict[str, Any] = {"rounds": 2, "seconds": 0.7, "size": "128M"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare NBD servers, in many rows.")
    parser.add_argument("--tapdisk", metavar="PATH", help="the command (default: .venv, PATH)")
    parser.add_argument("--rows", metavar="REGEX", default="", help="only these rows")
    parser.add_argument("--servers", metavar="REGEX", default="", help="only these servers")
    parser.add_argument("--rounds", metavar="N", type=int, help="default 3")
    parser.add_argument("--seconds", metavar="S", type=float, help="of each turn (default 1)")
    parser.add_argument("--quick", action="store_true", help="a few rows, in five minutes")
    parser.add_argument("--size", help="of each disk (default 512M)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the disks lie")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument("--page", metavar="FILE", type=Path, help="a Markdown page to be renewed")
    parser.add_argument("--startup", action="store_true", help="start-up times as well")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--list", action="store_true", help="name the rows and servers, and exit")
    args = parser.parse_args()
    for name, value in (SHORT if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.dir.is_dir():
        parser.error(f"{args.dir}: not a directory")
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    try:
        args.size = disks.parse_size(args.size)
        args.rows, args.servers = re.compile(args.rows), re.compile(args.servers)
        if args.page:
            page.check(args.page)
    except (ValueError, OSError, re.error) as error:
        parser.error(str(error))
    return args


def _installed(cases: list[Case], tapdisk: str | None, wanted: re.Pattern[str]) -> dict[str, str]:
    """The servers that are there, with their versions; a line names those that are missing."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for spec in (spec for case in cases for spec in lineup.specs(case.kind)):
        if not wanted.search(spec.name):
            continue
        if path := lineup.command_of(spec, tapdisk):
            if spec.name not in found:
                found[spec.name] = servers.version(path, spec.start)
        else:
            missing[spec.command] = spec.package
    if missing:
        names = ", ".join(f"{name} ({package})" for name, package in missing.items())
        say(f"not installed, left out: {names}")
    return found


def _wanted(args: argparse.Namespace) -> list[tuple[Case, list[Row]]]:
    found = []
    for case in CASES:
        rows = [row for row in case.rows() if args.rows.search(row.name)]
        if args.quick:
            rows = [row for row in rows if row.name in QUICK]
        if rows:
            found.append((case, rows))
    return found


def _host(versions: dict[str, str]) -> dict[str, object]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "versions": versions | {"fio": servers.version("fio")},
    }


def _check_room(args: argparse.Namespace, count: int) -> None:
    need = args.size * count
    free = shutil.disk_usage(args.dir).free
    if need > free:
        raise SystemExit(f"{args.dir}: {count} disks need {need >> 20} MiB, {free >> 20} are free")
    if need > procs.available_memory() * 0.7:
        say("warning: the disks may not all fit in the page cache; use a smaller --size")


def _run(args: argparse.Namespace) -> int:
    wanted = _wanted(args)
    if problem := fio_problem():
        raise SystemExit(problem)
    tapdisk = lineup.find_tapdisk(args.tapdisk)
    versions = _installed([case for case, _ in wanted], tapdisk, args.servers)
    if args.quick:  # of each kind of server the newest
        versions = {
            name: told for name, told in versions.items() if lineup.newer(name) not in versions
        }
    if not versions:
        raise SystemExit("nothing to measure: no such row, or no such server")
    _check_room(args, len(versions))
    for name, version in versions.items():
        say(f"{name}: {version}")
    plan = Plan(
        tapdisk=tapdisk,
        rounds=args.rounds,
        seconds=args.seconds,
        ramp=0 if args.quick else RAMP_SECONDS,
        size=args.size,
        folder=args.dir,
        servers=frozenset(versions),
    )
    _say_how_long(plan, wanted)
    host = _host(versions)
    results = Results([row for _, rows in wanted for row in rows], ["tapdisk"])
    starts: list[startup.Start] = []
    status = 0
    with tempfile.TemporaryDirectory(prefix="tapbench-") as folder:
        try:
            if args.startup and tapdisk:
                starts = _startup(tapdisk, Path(folder), results)
            for case, rows in wanted:
                if specs := taking_part(case, plan):
                    CaseRun(case, plan, results, rows, specs, Path(folder)).measure()
        except KeyboardInterrupt:
            say("interrupted; this is what was measured")
            status = 130
    return _finish(args, results, starts, host) or status


def _say_how_long(plan: Plan, wanted: list[tuple[Case, list[Row]]]) -> None:
    firsts = sum(len(rows) * len(taking_part(case, plan)) for case, rows in wanted)
    seconds = firsts * plan.rounds * (plan.seconds + FIO_START_SECONDS)
    seconds += firsts * (plan.ramp + FIO_START_SECONDS) if plan.ramp else 0
    say(f"{firsts * plan.rounds} turns: about {seconds / 60:.0f} minutes, and the disks are made")


def _startup(tapdisk: str, folder: Path, results: Results) -> list[startup.Start]:
    file = folder / "disk"
    disks.make(file, 16 << 20)
    try:
        return startup.measure(tapdisk, file)
    except (startup.StartError, OSError) as error:
        results.problems.append(f"start-up: {error}")
        say(f"  {results.problems[-1]}")
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
    named = {"below target": below, "failed": results.problems, "left out": results.left_out}
    for title, lines in named.items():
        if lines:
            print(f"\n{title}:", *lines, sep="\n  ")
    if args.json:
        figures = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": host,
            "settings": {name: getattr(args, name) for name in FULL},
            "rows": results.as_json(),
            "anonymous": {name: results.anonymous(name) for name in results.seen()},
            "startup": [
                {"command": s.command, "ms": s.median_ms, "over_python_ms": s.over_python_ms}
                for s in starts
            ],
            "below": below,
            "problems": results.problems,
            "left_out": results.left_out,
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if args.page:
        page.renew(args.page, results, host, f"rounds: {args.rounds}, of {args.seconds:g} s a turn")
    return 1 if results.problems or (args.check and below) else 0


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # through the context managers, which stop the servers


def main() -> int:
    """Measure, and say how it went."""
    args = _arguments()
    if args.list:
        print("rows:", *(row.name for _, rows in _wanted(args) for row in rows), sep="\n  ")
        names = dict.fromkeys(spec.name for case in CASES for spec in lineup.specs(case.kind))
        print("servers:", *names, sep="\n  ")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _on_signal)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
