#!/usr/bin/env python3
"""What each door of a driver costs: the three that `tapdisk new-plugin` writes, by turns.

The drivers are those of the templates: `simple` and `hooks` have the same format (a header, and
the disk behind it), `map` has chunks behind a table. Each is driven in this process, through the
engine, with reads and writes of 4 KiB at random places, one at a time and 32 at once. On a busy
machine only the ratios of one turn mean something; CPU time is steadier than throughput.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import tapcore
from tapcore.tools.bench import BenchResult, Pattern, Workload, bench_disk
from tapcore.tools.newplugin import Door, new_plugin

DOORS: tuple[Door, ...] = ("hooks", "map", "simple")
PATTERNS: tuple[Pattern, ...] = ("randread", "randwrite")
DEPTHS = (1, 32)
SIZE = 64 << 20


def installed(folder: str) -> tapcore.Registry:
    """The drivers of the templates, and nothing else."""
    registry = tapcore.Registry(discover=False)
    for door in DOORS:
        made = new_plugin(f"b{door}", door, directory=folder, registry=registry)
        sys.path.insert(0, made.folder)
        module = import_module(f"tap_b{door}.driver")
        row = registry.register(getattr(module, f"B{door}", module), handle=f"b{door}")
        assert not row.error, row.error
    return registry


def make_disks(folder: str, registry: tapcore.Registry) -> dict[Door, str]:
    """A disk by each door, all of it allocated and in the page cache."""
    names: dict[Door, str] = {}
    for door in DOORS:
        names[door] = f"b{door}:{folder}/disk.b{door}"
        tapcore.create_image(names[door], SIZE, registry=registry)
        with tapcore.open(names[door], registry=registry, readonly=False) as disk:
            for offset in range(0, SIZE, 1 << 20):
                disk.pwrite(offset, b"\1" * (1 << 20))
    return names


def main() -> None:
    """Measure, and print a table; the last column compares with the hooks in the same turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--dir", help="where the disks lie (default: the temporary directory)")
    parser.add_argument("--json", metavar="FILE", help="every figure as well")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=words.dir) as folder:
        registry = installed(folder)
        names = make_disks(folder, registry)
        figures = []
        print(f"{'4k':16} {'door':7} {'IOPS':>8} {'CPU µs':>7}  {'IOPS to hooks':>13} {'CPU':>6}")
        for pattern in PATTERNS:
            for depth in DEPTHS:
                load = Workload(pattern, 4096, depth, words.seconds)
                turns = [
                    {door: run(names[door], load, registry) for door in DOORS}
                    for _ in range(words.turns)
                ]
                figures += [
                    turn[door].as_dict() | {"door": door} for turn in turns for door in turn
                ]
                print_rows(f"{pattern} qd{depth}", turns)
    if words.json:
        Path(words.json).write_text(json.dumps(figures, indent=1))


def run(name: str, load: Workload, registry: tapcore.Registry) -> BenchResult:
    """One turn of one door."""
    with tapcore.open(name, registry=registry, readonly=False) as disk:
        return bench_disk(disk, load)


def cpu(result: BenchResult) -> float:
    """µs a request."""
    return result.cpu_seconds * 1e6 / max(result.requests, 1)


def print_rows(row: str, turns: list[dict[Door, BenchResult]]) -> None:
    """Medians of the turns; one in which a busy machine let a door do nothing compares nothing."""
    turns = [turn for turn in turns if all(result.cpu_seconds for result in turn.values())]
    if not turns:
        print(f"{row:16} no turn in which all had time")
        return
    for door in DOORS:
        iops = statistics.median(turn[door].iops for turn in turns)
        cost = statistics.median(cpu(turn[door]) for turn in turns)
        faster = statistics.median(turn[door].iops / turn["hooks"].iops for turn in turns)
        dearer = statistics.median(cpu(turn[door]) / cpu(turn["hooks"]) for turn in turns)
        print(
            f"{row:16} {door:7} {iops:8.0f} {cost:7.1f}  {faster:12.2f}x {dearer:5.2f}x", flush=True
        )


if __name__ == "__main__":
    main()
