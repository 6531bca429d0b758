"""New clusters: written at the end of the file, and then linked.

A new cluster is entered in its table, in memory, when it has been written, and answered then; the
write-back brings the entry to the disk. Until it is entered it is busy: other writes to it wait.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tap_qcow.busy import BusyClusters, BusyRun
from tap_qcow.content import Content
from tap_qcow.inflater import Inflater
from tap_qcow.layout import COMPRESSED
from tap_qcow.mapping import ClusterMap
from tap_qcow.space import Space
from tap_qcow.tables import Table
from tap_qcow.writeback import Writeback
from tap_qcow.writerequest import WriteRequest
from tapcore import SECTOR_SHIFT, DiskDriver


class NewClusters:
    """Stores the new clusters of one image.

    Args:
        map: says where a sector lies.
        space: where new clusters go.
        content: moves that of plain clusters.
        inflater: reads compressed clusters.
        writeback: brings tables to the disk.

    Attributes:
        busy: those that are on their way.
    """

    def __init__(
        self,
        map: ClusterMap,
        space: Space,
        content: Content,
        inflater: Inflater,
        writeback: Writeback,
    ) -> None:
        self._map = map
        self._space = space
        self._content = content
        self._inflater = inflater
        self._writeback = writeback
        self.busy = BusyClusters()

    @property
    def _fills(self) -> bool:
        """What a write leaves out of a new cluster must be written, too: the parent's content, or
        zeroes, encrypted."""
        header = self._map.header
        return header.encrypted or bool(header.backing_file)

    def store(self, request: WriteRequest, table: Table, sector: int, stop: int) -> tuple[int, int]:
        """Write from a sector on, whose cluster has no place of its own and is not busy.

        Args:
            request: that it is a part of.
            table: that maps the cluster.
            sector: the first one.
            stop: the sector behind what is to be written.

        Returns:
            Up to which sector that was done, or begun; and how many requests it finished.
        """
        geometry = self._map.geometry
        shift, mask = geometry.cluster_shift, geometry.sector_mask
        start = sector >> shift
        cluster_end = min((start + 1) << shift, self._map.sectors)
        whole = not sector & mask and stop >= cluster_end
        if not whole and (table.entries[start & geometry.entry_mask] or self._fills):
            until = min(stop, cluster_end)
            return until, self._fill_and_store(request, table, sector, until)
        end = start + self._count(table, start, stop)
        until = min(stop, end << shift)
        try:
            host = self._space.allocate(end - start)
        except OSError as exc:
            return until, request.answer(-(exc.errno or errno.EIO), sector, until)
        busy = self.busy.add(table, start, end)
        done = partial(self._stored, request, busy, host, sector, until)
        offset = host + ((sector & mask) << SECTOR_SHIFT)
        content = request.content(sector, until)
        # so that the file is as long as the table says
        rest = (-until & mask) << SECTOR_SHIFT
        return until, self._content.write(offset, sector, content, done, rest)

    def _count(self, table: Table, start: int, stop: int) -> int:
        """How many clusters from one on a write that ends at `stop` can store in one go."""
        shift, mask = self._map.geometry.cluster_shift, self._map.geometry.entry_mask
        last = (stop - 1) >> shift
        cut = bool(stop & self._map.geometry.sector_mask) and stop < self._map.sectors
        count = 1
        for cluster in range(start + 1, self.busy.first(start + 1, last + 1)):
            entry = table.entries[cluster & mask]
            if 0 < entry < COMPRESSED or (cut and cluster == last and (entry or self._fills)):
                break
            count += 1
        return count

    # ---- parts of clusters ------------------------------------------------------------------

    def _fill_and_store(self, request: WriteRequest, table: Table, sector: int, until: int) -> int:
        """Write a part of a cluster, and what was there, or shows through, around it."""
        geometry = self._map.geometry
        cluster = sector >> geometry.cluster_shift
        busy = self.busy.add(table, cluster, cluster + 1)
        start = cluster << geometry.cluster_shift

        def filled(res: int, around: bytes | bytearray) -> int:
            if res:
                return self._give_up(request, busy, res, sector, until)
            content = bytearray(around)
            skip = (sector - start) << SECTOR_SHIFT
            new = request.content(sector, until)
            content[skip : skip + len(new)] = new
            try:
                host = self._space.allocate(1)
            except OSError as exc:
                return self._give_up(request, busy, -(exc.errno or errno.EIO), sector, until)
            done = partial(self._stored, request, busy, host, sector, until)
            return self._content.write(host, start, content, done)

        entry = table.entries[cluster & geometry.entry_mask]
        if entry:
            return self._inflater.fetch(entry, filled)
        if not self._map.header.backing_file:
            return filled(0, bytes(geometry.cluster_size))
        self._read_below(request.whole.dd, start, filled)
        return 0

    def _read_below(
        self, dd: DiskDriver, start: int, then: Callable[[int, bytearray], int]
    ) -> None:
        """Read what shows through where a cluster begins; `then(res, content)` is called later."""
        geometry = self._map.geometry
        around = bytearray(geometry.cluster_size)

        def read_below(read: Any) -> None:
            then(read.status, around)
            # this may be called when a parent has answered: outside our hooks
            self._map.file.submit()

        assert dd.td_state is not None
        assert dd.td_state.blkif is not None
        held = min(self._map.sectors - start, 1 << geometry.cluster_shift) << SECTOR_SHIFT
        dd.td_state.blkif.read_below(dd, start, memoryview(around)[:held], read_below)

    # ---- the end ----------------------------------------------------------------------------

    def _stored(
        self, request: WriteRequest, busy: BusyRun, host: int, sector: int, until: int, res: int
    ) -> int:
        """New clusters have been written, or could not be."""
        if res:
            return self._give_up(request, busy, res, sector, until)
        size = self._map.geometry.cluster_size
        self.link(busy, range(host, host + (busy.end - busy.start) * size, size))
        finished = request.answer(0, sector, until)
        return finished + self.busy.release(busy)

    def link(self, busy: BusyRun, entries: Iterable[int]) -> None:
        """Enter clusters that have been written in their table, in memory."""
        first = busy.start & self._map.geometry.entry_mask
        self._map.tables.set(busy.table, first, entries)
        self._writeback.when_needed()

    def _give_up(
        self, request: WriteRequest, busy: BusyRun, res: int, sector: int, until: int
    ) -> int:
        finished = request.answer(res, sector, until)
        return finished + self.busy.release(busy)
