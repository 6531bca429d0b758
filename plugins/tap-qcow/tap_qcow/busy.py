"""Busy clusters: they are being written for the first time, and who else writes there waits."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from tap_qcow.tables import Table


@attrs.define(eq=False)
class BusyRun:
    """Clusters of the disk, from `start` up to `end`, and what waits for them.

    Attributes:
        table: the L2 table that maps the clusters; it stays in memory meanwhile.
        start: number of the first cluster.
        end: number of the first cluster behind them.
        waiting: called when the clusters are free; each returns how many requests it finished.
    """

    table: Table
    start: int
    end: int
    waiting: list[Callable[[], int]] = attrs.field(factory=list)


class BusyClusters:
    """Those of one image."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: list[BusyRun] = []

    def add(self, table: Table, start: int, end: int) -> BusyRun:
        """Clusters are about to be written for the first time; arguments as of `BusyRun`."""
        run = BusyRun(table, start, end)
        self._runs.append(run)
        table.pins += 1
        return run

    def release(self, run: BusyRun) -> int:
        """Clusters are there; returns how many requests those that waited finished."""
        self._runs.remove(run)
        run.table.pins -= 1
        return sum(go_on() for go_on in run.waiting)

    def run_of(self, cluster: int) -> BusyRun | None:
        """The run that a cluster belongs to."""
        for run in self._runs:
            if run.start <= cluster < run.end:
                return run
        return None

    def first(self, start: int, end: int) -> int:
        """The first cluster from `start` up to `end` that is busy; `end` where none is."""
        return min(
            (max(run.start, start) for run in self._runs if run.start < end and run.end > start),
            default=end,
        )
