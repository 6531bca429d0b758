"""Writes: in place where the place is the disk's own, else into new clusters, copying on write.

A cluster that gets a place is busy: what else wants to change it waits until it is linked. It is
linked, in memory, when its content has been written, and answered then; the write-back brings the
link to the disk.
"""

from __future__ import annotations

from functools import partial
from typing import Final, TypeAlias

from tapcore.clusters.busy import BusyClusters, Claim
from tapcore.clusters.filling import Filling
from tapcore.clusters.map import Place, WritableMap
from tapcore.clusters.mapped import MappedDisk
from tapcore.clusters.reading import Reader
from tapcore.clusters.runs import DATA, PACKED, ZERO, AnswerPart, Run
from tapcore.clusters.writeback import Writeback
from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import ImageFormatError, TapError

_PAGE: Final = 4096
"""Bytes: so much of zeroes is written rather than left out."""


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
        self.busy = BusyClusters(map.cluster_shift)

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
        write, mask = _Write(self, sector, buf, answer), self.disk.mask
        start, limit = sector & ~mask, (stop + mask) & ~mask
        if not self.busy.claims and self.map.is_new(start, limit):
            try:
                return write.into_new(sector, stop, start, limit)
            except ImageFormatError:
                pass  # it is met again, and told for the cluster that it is about
            except (TapError, OSError) as exc:
                return answer(self.disk.failed(exc, sector, stop), sector, stop - sector)
        return write.run(sector, stop)


def has_place(run: Run) -> bool:
    """Whether the clusters of a run have a place of their own."""
    return run.kind != PACKED and run.where >= 0 and run.own


_Part: TypeAlias = tuple[int, int, int, int, int, Place | None]
"""`(sector, stop, start, limit, where, place)`: a part of a write that has to be linked.

The part goes from sector to stop. Stored are whole units around it, from start to limit, at a host
offset (bytes) in the place that was allocated for it; None: in one that was kept."""


class _Write:
    """A write request, of which parts are stored in several steps.

    Args:
        writer: of the disk.
        sector: that its content begins with.
        buf: its content.
        answer: for parts of it.
    """

    __slots__ = ("_busy", "_disk", "_first", "_map", "answer", "buf", "writer")

    def __init__(self, writer: Writer, sector: int, buf: memoryview, answer: AnswerPart) -> None:
        self.writer = writer
        self.buf = buf
        self.answer = answer
        self._disk = writer.disk
        self._map = writer.map
        self._busy = writer.busy
        self._first = sector

    def content(self, sector: int, stop: int) -> memoryview:
        """What is to be written to the sectors from one up to another."""
        first = self._first
        return self.buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]

    def _again(self, sector: int, until: int) -> partial[int]:
        return partial(self.run, sector, until)

    def run(self, sector: int, stop: int) -> int:
        """Write a part of it; returns how many requests were finished."""
        disk, busy, finished = self._disk, self._busy, 0
        while sector < stop:
            if busy.claims and (claim := busy.at(sector)) is not None:
                sector = busy.wait(claim, stop, partial(self._again, sector))
                continue
            try:
                run = self._map.run_to_write(sector, stop)
                if run is None:
                    until = disk.table_end(sector, stop)
                    disk.load(sector, until, self._again(sector, until), self.answer)
                else:
                    done, until = self._piece(run, stop)
                    finished += done
            except (TapError, OSError) as exc:
                until = disk.concerns(exc, sector, stop)
                res = disk.failed(exc, sector, until)
                finished += self.answer(res, sector, until - sector)
            sector = until
        return finished

    def into_new(self, sector: int, stop: int, start: int, limit: int) -> int:
        """The same of clusters, from `start` up to `limit`, of which there is nothing yet.

        Raises:
            TapError, OSError: nothing was begun.
        """
        place = self._map.allocate(start, (limit - start) >> self._disk.shift)
        end = start + (place.clusters << self._disk.shift)
        until = min(stop, end)
        part = (sector, until, start, end, place.where, place)
        if sector == start and until == end:
            finished = self._store(part, place.where, self.content(sector, until))
        elif place.blank and self._map.cipher is None and self._nothing_below(start, end):
            finished = self._alone(part)
        else:
            finished = self._with_what_is_around(part)
        return finished if until == stop else finished + self.run(until, stop)

    def _piece(self, run: Run, stop: int) -> tuple[int, int]:
        """As much as goes one way; returns how many requests were finished, and up to where.

        Raises:
            TapError, OSError: nothing was begun.
        """
        sector, shift, mask = run.sector, self._disk.shift, self._disk.mask
        if run.where >= 0 and has_place(run):
            until = self._busy.free_until(sector, run.end)
            if run.kind == DATA:
                return self._in_place(run, until), until
            first, end = self._units(sector, until)
            where = run.where - ((sector - first) << SECTOR_SHIFT)
            return self._with_what_is_around((sector, until, first, end, where, None)), until
        start, end = sector & ~mask, (sector | mask) + 1
        if sector == start and stop >= end:
            return self._whole(run, stop)
        map = self._map
        if run.kind in (DATA, PACKED) or run.where >= 0:  # what else is there must come along
            until, first, moves = min(stop, end), start, True
        else:
            until, moves = min(sector + run.nb_sectors, end), False
            first, end = self._units(sector, until) if map.unit_shift < shift else (start, end)
        place = map.allocate(start, 1)
        where = place.where + ((first - start) << SECTOR_SHIFT)
        part = (sector, until, first, end, where, place)
        if moves or not place.blank or map.cipher is not None:
            return self._with_what_is_around(part), until
        # what is around it in its units is of the same kind
        if run.kind == ZERO or self._nothing_below(first, end):
            return self._alone(part), until
        return self._with_what_is_around(part), until

    def _whole(self, run: Run, stop: int) -> tuple[int, int]:
        """Whole clusters, as many as there is space for side by side; returns as `_piece`."""
        sector, shift = run.sector, self._disk.shift
        wanted = (stop - sector) >> shift
        if wanted > 1:
            wanted = max((self._reach(run, stop) - sector) >> shift, 1)
        place = self._map.allocate(sector, wanted)
        until = sector + (place.clusters << shift)
        part = (sector, until, sector, until, place.where, place)
        return self._store(part, place.where, self.content(sector, until)), until

    def _with_what_is_around(self, part: _Part) -> int:
        """Store a part, and what the disk shows around it; returns requests finished."""
        sector, stop, start, limit, where, _ = part
        content = self.content(sector, stop)
        if (start, limit) == (sector, stop):
            return self._store(part, where, content)
        return _NewContent(self, part).fill(content)

    def _alone(self, part: _Part) -> int:
        """Store a part in new space that is a hole of the file, which what is around it may stay.

        The file must not end inside the new cluster.

        Raises:
            OSError: nothing was begun.
        """
        sector, stop, start, _, where, place = part
        content = self.content(sector, stop)
        tail = (-stop & self._disk.mask) << SECTOR_SHIFT
        if tail >= _PAGE:
            assert place is not None
            size = place.clusters << self._disk.shift + SECTOR_SHIFT
            try:
                self._map.data.truncate_up(place.where + size)
            except OSError:
                self._map.give_back(place.where, place.clusters)
                raise
        elif tail:
            content = memoryview(bytes(content) + bytes(tail))
        return self._store(part, where + ((sector - start) << SECTOR_SHIFT), content)

    def _store(self, part: _Part, where: int, content: memoryview) -> int:
        """Write all that there is to be written of a part, at a host offset (bytes).

        What the page cache takes at once is linked at once: nobody could meet it in between. Else
        its clusters are busy until it is linked.
        """
        map = self._map
        if map.cipher is None:
            res = map.data.write_now(where, content)
            if res is not None:
                finished = self.stored(part, res)
                if map.must_write_back:
                    self.writer.writeback.when_needed()
                return finished
        return _NewContent(self, part).write(where, content)

    def stored(self, part: _Part, res: int) -> int:
        """A part is in its place, or could not be written; returns how many requests finished."""
        sector, stop, start, limit, where, place = part
        if not res:
            try:
                self._map.link(start, limit, where)
            except (TapError, OSError) as exc:
                res = self._disk.failed(exc, start, limit)
        if res and place is not None:
            self._map.give_back(place.where, place.clusters)
        return self.answer(res, sector, stop - sector)

    def _nothing_below(self, sector: int, stop: int) -> bool:
        """Whether what is a hole here reads as zeroes."""
        return self._disk.dd.next is None or self._disk.below(sector, stop) == sector

    def _units(self, sector: int, stop: int) -> tuple[int, int]:
        mask = (1 << self._map.unit_shift) - 1
        return sector & ~mask, (stop + mask) & ~mask

    def _reach(self, run: Run, stop: int) -> int:
        """Up to where whole clusters follow that have no place of their own and are not busy."""
        sector = run.sector
        limit = self._disk.table_end(sector, stop & ~self._disk.mask)
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
        return self._disk.content.write(run.where, sector, self.content(sector, until), done)

    def _wrote(self, sector: int, until: int, res: int) -> int:
        return self.answer(res, sector, until - sector)


class _NewContent(Claim):
    """A part of a write that has to wait before it is linked.

    Args:
        write: that it is a part of.
        part: of it.
    """

    __slots__ = ("_part", "_write")

    def __init__(self, write: _Write, part: _Part) -> None:
        _, _, start, limit, _, _ = part
        shift = write.writer.disk.shift
        super().__init__(start >> shift, ((limit - 1) >> shift) + 1)
        self._write = write
        self._part = part
        write.writer.busy.take(self)

    def fill(self, content: memoryview) -> int:
        """Write content with what the disk shows around it; returns requests finished."""
        writer, part = self._write.writer, self._part
        sector, stop, start, limit, where, _ = part
        sides = ((start, sector), (stop, min(limit, writer.map.sectors)))
        view = memoryview(bytearray((limit - start) << SECTOR_SHIFT))

        def filled(res: int) -> int:
            if res:
                return self._written(res)
            skip = (sector - start) << SECTOR_SHIFT
            view[skip : skip + len(content)] = content
            return writer.disk.content.write(where, start, view, self._written)

        around = [side for side in sides if side[0] < side[1]]
        return Filling(writer.disk, writer.reader, start, view, filled).start(around)

    def write(self, where: int, content: memoryview) -> int:
        """Write what the page cache did not take, at a host offset (bytes)."""
        disk, map = self._write.writer.disk, self._write.writer.map
        if map.cipher is not None:
            return disk.content.write(where, self._part[0], content, self._written)
        return disk.content.queue_write(where, content, self._written)

    def _written(self, res: int) -> int:
        """It is in its place, or could not be written; those that waited for it go on."""
        writer = self._write.writer
        finished = self._write.stored(self._part, res)
        finished += writer.busy.release(self)
        if writer.map.must_write_back:
            writer.writeback.when_needed()
        return finished
