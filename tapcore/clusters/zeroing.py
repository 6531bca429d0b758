"""Zeroes and discards: what the map can say, else what the file can do, else the core writes."""

from __future__ import annotations

import errno
from functools import partial
from typing import Final

from tapcore.clusters.runs import DATA, HOLE, PACKED, AnswerPart, Run
from tapcore.clusters.writing import Writer
from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import TapError

_STEPS: Final = 256
"""Runs that one goes through before it lets others have their turn."""


class Zeroing:
    """A discard, or a write of zeroes.

    Args:
        writer: of the disk.
        answer: for parts of it.
        discard: content may as well stay; else it must read as zeroes.
        may_unmap: space may be given back.
    """

    __slots__ = ("_answer", "_busy", "_discard", "_disk", "_map", "_may_unmap", "_writeback")

    def __init__(
        self, writer: Writer, answer: AnswerPart, *, discard: bool, may_unmap: bool
    ) -> None:
        self._disk = writer.disk
        self._map = writer.map
        self._busy = writer.busy
        self._writeback = writer.writeback
        self._answer = answer
        self._discard = discard
        self._may_unmap = may_unmap

    def run(self, sector: int, stop: int) -> int:
        """Go through a range, not an empty one, run by run; returns requests finished."""
        finished = 0
        for _ in range(_STEPS):
            done, sector = self._step(sector, stop)
            finished += done
            if sector >= stop:
                return finished
            if self._map.must_write_back:
                self._writeback.flush(partial(self._go_on, sector, stop))
                return finished
        self._map.file.queue_work(int, partial(self._go_on, sector, stop))
        return finished

    def _go_on(self, sector: int, stop: int, res: int) -> int:
        return self._answer(res, sector, stop - sector) if res else self.run(sector, stop)

    def _again(self, sector: int, until: int) -> partial[int]:
        return partial(self.run, sector, until)

    def _step(self, sector: int, stop: int) -> tuple[int, int]:
        """One run, or what lies before it; returns requests finished, and up to where."""
        if self._busy.claims and (claim := self._busy.at(sector)) is not None:
            return 0, self._busy.wait(claim, stop, partial(self._again, sector))
        disk = self._disk
        try:
            run = self._map.run_to_clear(sector, stop)
            if run is None:
                until = disk.table_end(sector, stop)
                disk.load(sector, until, self._again(sector, until), self._answer)
                return 0, until
            if self._busy.claims:
                run = run.upto(self._busy.free_until(sector, run.end))
            return self._one(run)
        except (TapError, OSError) as exc:
            until = disk.concerns(exc, sector, stop)
            return self._answer(disk.failed(exc, sector, until), sector, until - sector), until

    def _one(self, run: Run) -> tuple[int, int]:
        """As much of a run as goes one way: its whole units, or what lies before or behind."""
        map = self._map
        mask = (1 << map.unit_shift) - 1
        start, end = run.sector, run.sector + run.nb_sectors
        first = (start + mask) & ~mask
        last = end if end == map.sectors else end & ~mask
        if first >= last or first > start:
            run = run.upto(first if first < last else end)
            return self._edge(run), run.end
        if last < end:
            run = run.upto(last)
        res = map.clear(run, discard=self._discard, may_unmap=self._may_unmap)
        if res == -errno.EOPNOTSUPP:
            return self._edge(run), last
        if map.must_write_back:
            self._writeback.when_needed()
        return self._answer(res, start, run.nb_sectors), last

    def _done(self, res: int, run: Run) -> int:
        return self._answer(res, run.sector, run.nb_sectors)

    def _edge(self, run: Run) -> int:
        """What the map has no way to say."""
        if run.kind == DATA and self._map.zeroes_in_place and run.own and self._map.cipher is None:
            return self._in_place(run)
        if self._discard:
            return self._done(0, run)
        if run.kind in (DATA, PACKED):
            return self._done(-errno.EOPNOTSUPP, run)
        below = self._disk.below(run.sector, run.end) if run.kind == HOLE else run.sector
        finished = 0
        if below > run.sector:
            finished = self._done(-errno.EOPNOTSUPP, run.upto(below))
        if below < run.end:  # zeroes, but perhaps without the space that is asked for
            res = 0 if self._may_unmap or not self._map.zeroes_in_place else -errno.EOPNOTSUPP
            finished += self._answer(res, below, run.end - below)
        return finished

    def _in_place(self, run: Run) -> int:
        data, length = self._map.data, run.nb_sectors << SECTOR_SHIFT
        then = self._disk.content.counted(lambda res: self._done(res, run))
        if self._discard:
            data.queue_discard(run.where, length, then)
        else:
            data.queue_zero(run.where, length, self._may_unmap, then)
        return 0
