"""Writes: in place, or into new clusters at the end of the file."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from tap_qcow.content import Content
from tap_qcow.layout import COMPRESSED
from tap_qcow.mapping import ClusterMap
from tap_qcow.missing import make_room_for_lost
from tap_qcow.newclusters import NewClusters
from tap_qcow.space import Space
from tap_qcow.tables import Table
from tap_qcow.writeback import Writeback
from tap_qcow.writerequest import WriteRequest
from tapcore import Answer, DiskDriver, TapError, TdCallback


class Writer:
    """The writes of one image.

    Args:
        dd: the image in its chain.
        map: says where a sector lies.
        space: for new tables.
        content: moves that of plain clusters.
        new: stores new clusters.
        writeback: brings tables to the disk.
    """

    def __init__(
        self,
        dd: DiskDriver,
        map: ClusterMap,
        space: Space,
        content: Content,
        new: NewClusters,
        writeback: Writeback,
    ) -> None:
        self._dd = dd
        self._map = map
        self._file = map.file
        self._space = space
        self._content = content
        self._new = new
        self._writeback = writeback
        self._begun = False

    def begin(self) -> None:
        """Before the first change: what is lost must not get the place of what is new.

        Raises:
            ImageFormatError: clusters are missing, and nobody said that they may be.
            OSError: as the system says.
        """
        if not self._begun:
            make_room_for_lost(self._dd, self._map, self._space)
            self._begun = True

    def write(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """In place, or at the end of the file; arguments and result are the hook's."""
        if not self._begun:
            self.begin()
        where = self._map.place(sector, nb_sectors)
        if where and self._content.cipher is None:
            res = self._file.write_now(where, buf)
            if res is None:
                return self._file.queue_write(where, buf, (cb, dd, sector, nb_sectors, id, prv))
            return cb(dd, res, sector, nb_sectors, id, prv)
        if res := self._writeback.no_room():
            return res
        return self._write(WriteRequest(sector, buf, Answer(cb, dd, id, prv)), sector, nb_sectors)

    def _write(self, request: WriteRequest, sector: int, nb_sectors: int) -> int:
        end = sector + nb_sectors
        shift = self._map.geometry.table_shift
        finished = 0
        while sector < end:
            index = sector >> shift
            stop = min(end, (index + 1) << shift)
            finished += self.write_in_table(request, index, sector, stop)
            sector = stop
        return finished

    def write_in_table(self, request: WriteRequest, index: int, sector: int, stop: int) -> int:
        """Write a range that one L2 table maps.

        Args:
            request: that it is a part of.
            index: of the table's L1 entry.
            sector: the first one.
            stop: the sector behind the range.

        Returns:
            How many requests were finished inside the call.
        """

        def go_on(table: Table) -> int:
            finished, at = 0, sector
            while at < stop:
                at, done = self._write_some(request, table, at, stop)
                finished += done
            return finished

        return self.with_table(
            index,
            go_on,
            partial(self.write_in_table, request, index, sector, stop),
            lambda res: request.answer(res, sector, stop),
        )

    def with_table(
        self,
        index: int,
        go_on: Callable[[Table], int],
        again: Callable[[], int],
        fail: Callable[[int], int],
    ) -> int:
        """Do something with the L2 table of an L1 entry, made if there is none, pinned meanwhile.

        Args:
            index: of the L1 entry.
            go_on: called with the table, at once if it is in memory.
            again: called when the table, which was not, has been read.
            fail: called with a -errno.

        Returns:
            What was returned by what was called.
        """
        tables = self._map.tables
        try:
            if not tables.l1[index]:
                tables.add(index, self._space.allocate_table())
            table = tables.now(index)
            if table is None:
                tables.load(index, lambda res: fail(res) if res else again())
                return 0
        except (TapError, OSError) as exc:
            return fail(-(exc.errno or errno.EIO))
        table.pins += 1
        try:
            return go_on(table)
        finally:
            table.pins -= 1

    def _write_some(
        self, request: WriteRequest, table: Table, sector: int, stop: int
    ) -> tuple[int, int]:
        """Write what can be written in one go.

        Returns:
            Up to which sector that was done, or begun, or has to wait; and how many requests it
            finished.
        """
        geometry = self._map.geometry
        cluster = sector >> geometry.cluster_shift
        busy = self._new.busy.run_of(cluster)
        if busy is not None:
            until = min(busy.end << geometry.cluster_shift, stop)
            again = partial(self.write_in_table, request, table.index, sector, until)
            busy.waiting.append(again)
            return until, 0
        entry = table.entries[cluster & geometry.entry_mask]
        if not entry or entry & COMPRESSED:
            return self._new.store(request, table, sector, stop)
        return self._write_in_place(request, table, sector, stop)

    def _write_in_place(
        self, request: WriteRequest, table: Table, sector: int, stop: int
    ) -> tuple[int, int]:
        try:
            run = self._map.run(table, sector, stop)
        except TapError as exc:
            return stop, request.answer(-exc.errno, sector, stop)
        until = sector + run.nb_sectors
        done = partial(request.answer, sector=sector, stop=until)
        content = request.content(sector, until)
        return until, self._content.write(run.where, sector, content, done)
