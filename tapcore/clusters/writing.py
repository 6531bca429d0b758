"""Writes: in place where the place is the disk's own, else into new clusters, copying on write.

A cluster that gets a place is busy: what else wants to change it waits until it is linked. It is
linked, in memory, when its content has been written, and answered then; the write-back brings the
link to the disk.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from tapcore.clusters.busy import BusyClusters, Claim
from tapcore.clusters.filling import Filling, shows_zeroes
from tapcore.clusters.map import Place, WritableMap
from tapcore.clusters.mapped import AnswerPart, MappedDisk
from tapcore.clusters.reading import Reader
from tapcore.clusters.runs import DATA, PACKED, Run
from tapcore.clusters.writeback import Writeback
from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import ImageFormatError, TapError


class Writer:
    """Writes of one disk.

    Args:
        disk: that is written.
        map: of it.
        reader: of it.
        writeback: of its map.

    Attributes:
        disk, map, reader, writeback: as given.
        busy: its busy clusters.
    """

    __slots__ = ("busy", "disk", "map", "reader", "writeback")

    def __init__(
        self, disk: MappedDisk, map: WritableMap, reader: Reader, writeback: Writeback
    ) -> None:
        self.disk = disk
        self.map = map
        self.reader = reader
        self.writeback = writeback
        self.busy = BusyClusters(map)

    def write(self, sector: int, stop: int, buf: memoryview, answer: AnswerPart) -> int:
        """Write a range, of which each part is answered once, now or later.

        Args:
            sector: first sector.
            stop: first sector past it.
            buf: its content.
            answer: gets 0 or -errno.

        Returns:
            How many requests were finished inside this call.
        """
        return _Write(self, sector, buf, answer).run(sector, stop)

    def link(self, sector: int, stop: int, where: int) -> int:
        """Link what was written; returns 0 or -errno."""
        try:
            self.map.link(sector, stop, where)
        except (TapError, OSError) as exc:
            return self.disk.failed(exc, sector, stop)
        return 0


def has_place(run: Run) -> bool:
    """Whether the clusters of a run have a place of their own."""
    return run.kind != PACKED and run.where >= 0 and run.own


class _Target(NamedTuple):
    """Where a part of a request goes that has to be linked.

    Attributes:
        sector, stop: of the request, sectors.
        first, end: what is linked: whole units around these.
        where: host offset of `first`, bytes.
        place: that was allocated for it; None where it was kept.
    """

    sector: int
    stop: int
    first: int
    end: int
    where: int
    place: Place | None

    def at(self, sector: int) -> int:
        """Host offset of a sector, bytes."""
        return self.where + ((sector - self.first) << SECTOR_SHIFT)


class _Write:
    """A write request, of which parts are stored in several steps.

    Args:
        writer: of the disk.
        sector: that its content begins with.
        buf: its content.
        answer: for parts of it.
    """

    __slots__ = ("_answer", "_buf", "_busy", "_disk", "_first", "_map", "_mask", "_writer")

    def __init__(self, writer: Writer, sector: int, buf: memoryview, answer: AnswerPart) -> None:
        self._writer = writer
        self._disk = writer.disk
        self._map = writer.map
        self._busy = writer.busy
        self._mask = writer.disk.mask
        self._first = sector
        self._buf = buf
        self._answer = answer

    def _content(self, sector: int, stop: int) -> memoryview:
        first = self._first
        return self._buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]

    def _again(self, sector: int, until: int) -> partial[int]:
        return partial(self.run, sector, until)

    def run(self, sector: int, stop: int) -> int:
        """Write a part of it; returns how many requests were finished."""
        disk, finished = self._disk, 0
        while sector < stop:
            claim = self._busy.at(sector)
            if claim is not None:
                sector = self._busy.wait(claim, stop, partial(self._again, sector))
                continue
            try:
                run = self._map.run_to_write(sector, stop)
                if run is None:
                    until = disk.table_end(sector, stop)
                    disk.load(sector, until, self._again(sector, until), self._answer)
                else:
                    done, until = self._piece(run, stop)
                    finished += done
            except (TapError, OSError) as exc:
                until = disk.concerns(exc, sector, stop)
                res = disk.failed(exc, sector, until)
                finished += self._answer(res, sector, until - sector)
            sector = until
        return finished

    def _piece(self, run: Run, stop: int) -> tuple[int, int]:
        """As much as goes one way; returns how many requests were finished, and up to where.

        Raises:
            TapError, OSError: nothing was begun.
        """
        sector = run.sector
        if has_place(run):
            until = self._busy.free_until(sector, run.end)
            if run.kind == DATA:
                return self._in_place(run, until), until
            units = self._units(sector, until)
            where = run.where - ((sector - units[0]) << SECTOR_SHIFT)
            return self._store(_Target(sector, until, *units, where, None)), until
        start, end = sector & ~self._mask, (sector | self._mask) + 1
        if sector == start and stop >= end:
            wanted = (self._reach(run, stop) - start) >> self._disk.shift
            place = self._map.allocate(sector, max(wanted, 1))
            until = sector + (place.clusters << self._disk.shift)
            return self._store(_Target(sector, until, sector, until, place.where, place)), until
        moves = run.kind in (DATA, PACKED) or run.where >= 0  # what else is there must come along
        until = min(stop, end) if moves else min(run.end, end)
        first, last = (start, end) if moves else self._units(sector, until)
        place = self._map.allocate(start, 1)
        where = place.where + ((first - start) << SECTOR_SHIFT)
        return self._store(_Target(sector, until, first, last, where, place)), until

    def _units(self, sector: int, stop: int) -> tuple[int, int]:
        mask = (1 << self._map.unit_shift) - 1
        return sector & ~mask, (stop + mask) & ~mask

    def _reach(self, run: Run, stop: int) -> int:
        """Up to where whole clusters follow that have no place of their own and are not busy."""
        sector = run.sector
        limit = self._disk.table_end(sector, stop & ~self._mask)
        end = min(run.end, limit)
        try:
            while end < limit:
                following = self._map.run_to_write(end, limit)
                if following is None or has_place(following):
                    break
                end = following.end
        except ImageFormatError:
            pass  # told to whoever wants that cluster
        return self._busy.free_until(sector, end)

    def _in_place(self, run: Run, until: int) -> int:
        sector = run.sector
        done = partial(self._wrote, sector, until)
        return self._disk.content.write(run.where, sector, self._content(sector, until), done)

    def _wrote(self, sector: int, until: int, res: int) -> int:
        return self._answer(res, sector, until - sector)

    # ---- what has to be linked --------------------------------------------------------------

    def _store(self, target: _Target) -> int:
        """Write it, with what the disk shows around it, and link it."""
        sector, until, first, end, where, place = target
        around = [(first, sector), (until, min(end, self._map.sectors))]
        around = [(start, stop) for start, stop in around if start < stop]
        whole = (first, end) == (sector, until)
        try:
            leaves = not whole and self._leaves_around(place, around)
        except (TapError, OSError):
            self._give_back(place)
            raise
        claim = self._busy.claim(sector, until)
        stored = partial(self._stored, target, claim)
        content = self._content(sector, until)
        if whole or leaves:
            return self._disk.content.write(target.at(sector), sector, content, stored)
        view = memoryview(bytearray((end - first) << SECTOR_SHIFT))

        def filled(res: int) -> int:
            if res:
                return stored(res)
            skip = (sector - first) << SECTOR_SHIFT
            view[skip : skip + len(content)] = content
            return self._disk.content.write(where, first, view, stored)

        return Filling(self._disk, self._writer.reader, first, view, filled).start(around)

    def _leaves_around(self, place: Place | None, around: list[tuple[int, int]]) -> bool:
        """Whether what is around can stay what it is in new space: a hole of the file.

        Raises:
            TapError, OSError: the file cannot be made longer, or a table is damaged.
        """
        if place is None or not place.blank or self._map.cipher is not None:
            return False
        if not shows_zeroes(self._disk, around):
            return False
        size = place.clusters << self._disk.shift + SECTOR_SHIFT
        self._map.data.truncate_up(place.where + size)
        return True

    def _stored(self, target: _Target, claim: Claim, res: int) -> int:
        """It has been written, or could not be; those that waited for it go on."""
        res = res or self._writer.link(target.first, target.end, target.where)
        if res:
            self._give_back(target.place)
        finished = self._answer(res, target.sector, target.stop - target.sector)
        finished += claim.release()
        self._writer.writeback.when_needed()
        return finished

    def _give_back(self, place: Place | None) -> None:
        if place is not None:
            self._map.give_back(place.where, place.clusters)
