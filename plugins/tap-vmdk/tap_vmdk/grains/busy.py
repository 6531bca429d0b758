"""Busy grains: they are being written for the first time, and who else writes there waits."""

from __future__ import annotations

from collections.abc import Callable

import attrs


@attrs.define(eq=False)
class BusyRun:
    """New grains that are being written.

    Attributes:
        first: number of the first one.
        grains: how many.
        place: sector of the file where they begin.
        waiting: called when they are there; each returns how many requests it finished.
    """

    first: int
    grains: int
    place: int
    waiting: list[Callable[[], int]] = attrs.field(factory=list)


class BusyGrains:
    """Those of one part; sectors are those of the file's disk.

    Args:
        grain_shift: from a sector to the number of its grain.
    """

    def __init__(self, grain_shift: int) -> None:
        self._shift = grain_shift
        self._runs: dict[int, BusyRun] = {}  # by grain

    def add(self, at: int, nb: int, place: int) -> BusyRun:
        """Grains are about to be written for the first time.

        Args:
            at: a sector in the first one.
            nb: sectors, up to somewhere in the last one.
            place: sector of the file where the grains begin.
        """
        first, last = at >> self._shift, (at + nb - 1) >> self._shift
        run = BusyRun(first, last - first + 1, place)
        for grain in range(first, last + 1):
            self._runs[grain] = run
        return run

    def release(self, run: BusyRun) -> None:
        """Grains are there, or it failed; the caller lets those go on that waited."""
        for grain in range(run.first, run.first + run.grains):
            del self._runs[grain]

    def run_of(self, at: int) -> BusyRun | None:
        """The run that the grain of a sector belongs to."""
        return self._runs.get(at >> self._shift)

    def free(self, at: int, nb: int) -> int:
        """How many sectors, of so many from one on, lie before the next grain that is busy."""
        if not self._runs:
            return nb
        first, last = at >> self._shift, (at + nb - 1) >> self._shift
        for grain in range(first + 1, last + 1):
            if grain in self._runs:
                return (grain << self._shift) - at
        return nb
