"""Compressed writes: deflated in threads, some clusters at a time, and stored behind each other."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any, Final

from tap_qcow.busy import BusyRun
from tap_qcow.content import Content
from tap_qcow.layout import Geometry
from tap_qcow.mapping import ClusterMap
from tap_qcow.newclusters import NewClusters
from tap_qcow.space import Space
from tap_qcow.tables import Table
from tap_qcow.writeback import Writeback
from tap_qcow.writer import Writer
from tap_qcow.writerequest import WriteRequest
from tapcore import Answer, DiskDriver, TdCallback
from tapcore.deflate import deflate

GROUP_SECTORS: Final = 128
"""So much (64 KiB), or one cluster, is compressed by one thread and written with one call."""


class Deflater:
    """The compressed writes of one image.

    Args:
        map: says where a sector lies.
        space: where new clusters go.
        content: writes to the file.
        new: links new clusters.
        writer: writes what cannot be made smaller.
        writeback: brings tables to the disk.
    """

    def __init__(
        self,
        map: ClusterMap,
        space: Space,
        content: Content,
        new: NewClusters,
        writer: Writer,
        writeback: Writeback,
    ) -> None:
        self._map = map
        self._file = map.file
        self._space = space
        self._content = content
        self._new = new
        self._writer = writer
        self._writeback = writeback

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
        """Write whole clusters; not in an encrypted image: nobody looks for plain content there."""
        if self._map.header.encrypted:
            return -errno.EOPNOTSUPP
        self._writer.begin()
        if res := self._writeback.no_room():
            return res
        request = WriteRequest(sector, buf, Answer(cb, dd, id, prv))
        geometry = self._map.geometry
        end = sector + nb_sectors
        finished = 0
        while sector < end:
            table_end = ((sector >> geometry.table_shift) + 1) << geometry.table_shift
            until = min(sector + max(GROUP_SECTORS, 1 << geometry.cluster_shift), end, table_end)
            finished += self._write_group(request, sector, until)
            sector = until
        return finished

    def _write_group(self, request: WriteRequest, sector: int, until: int) -> int:
        geometry, new = self._map.geometry, self._new
        index = sector >> geometry.table_shift
        again = partial(self._write_group, request, sector, until)

        def go_on(table: Table) -> int:
            start = sector >> geometry.cluster_shift
            end = ((until - 1) >> geometry.cluster_shift) + 1
            busy = new.busy.run_of(new.busy.first(start, end))
            if busy is not None and busy.start < end:
                busy.waiting.append(again)
                return 0
            first = start & geometry.entry_mask
            if any(table.entries[first : first + end - start]):  # space that is there is used
                return self._writer.write_in_table(request, index, sector, until)
            self._deflate(_Group(request, geometry, new.busy.add(table, start, end), sector, until))
            return 0

        return self._writer.with_table(
            index, go_on, again, lambda res: request.answer(res, sector, until)
        )

    def _deflate(self, group: _Group) -> None:
        def deflated(res: int) -> int:
            return self._give_up(group, res) if res else self._place(group)

        self._file.queue_work(group.deflate, deflated)

    def _place(self, group: _Group) -> int:
        """Give the streams that are smaller than a cluster a place, and write them there."""
        smaller = group.smaller()
        if not smaller:
            return self._stored(group, 0)
        try:
            offset = self._space.allocate_compressed(sum(map(len, smaller)))
        except OSError as exc:
            return self._give_up(group, -(exc.errno or errno.EIO))
        group.place(offset)
        return self._put(group, offset, b"".join(smaller))

    def _put(self, group: _Group, offset: int, content: bytes) -> int:
        stored = partial(self._stored, group)
        if not self._file.direct:
            return self._content.write_as_is(offset, memoryview(content), stored)

        def work() -> int:
            self._file.write_metadata(offset, content)  # of any alignment
            return 0

        self._file.queue_work(work, stored)
        return 0

    def _stored(self, group: _Group, res: int) -> int:
        """The streams are written; what could not be made smaller is written plain now."""
        if res:
            return self._give_up(group, res)
        if any(group.entries):
            self._new.link(group.busy, group.entries)
        finished = 0
        plain: list[tuple[int, int]] = []
        for number, entry in enumerate(group.entries):
            if entry:
                finished += group.request.answer(0, *group.bounds(number))
            else:
                plain.append(group.bounds(number))
        finished += self._new.busy.release(group.busy)
        index = group.busy.table.index
        return finished + sum(
            self._writer.write_in_table(group.request, index, *bounds) for bounds in plain
        )

    def _give_up(self, group: _Group, res: int) -> int:
        finished = group.request.answer(res, group.sector, group.until)
        return finished + self._new.busy.release(group.busy)


class _Group:
    """Clusters that are compressed and stored together.

    Args:
        request: they are a part of.
        geometry: of the image.
        busy: the clusters.
        sector: their first sector.
        until: the sector behind them.

    Attributes:
        request, busy, sector, until: as given.
        entries: of the clusters; 0 for one that does not become smaller.
    """

    def __init__(
        self, request: WriteRequest, geometry: Geometry, busy: BusyRun, sector: int, until: int
    ) -> None:
        self.request = request
        self.busy = busy
        self.sector = sector
        self.until = until
        self.entries = [0] * (busy.end - busy.start)
        self._geometry = geometry
        self._streams: list[bytes] = []

    def bounds(self, number: int) -> tuple[int, int]:
        """First sector of a cluster of the group, and the sector behind it."""
        shift = self._geometry.cluster_shift
        start = self.sector + (number << shift)
        return start, min(start + (1 << shift), self.until)

    def deflate(self) -> int:
        """In a thread."""
        size = self._geometry.cluster_size
        for number in range(len(self.entries)):
            content = self.request.content(*self.bounds(number))
            if len(content) < size:  # the disk ends inside of it
                content = memoryview(bytes(content).ljust(size, b"\0"))
            self._streams.append(deflate(content))
        return 0

    def smaller(self) -> list[bytes]:
        """What is to be stored compressed, in order."""
        return [stream for stream in self._streams if len(stream) < self._geometry.cluster_size]

    def place(self, offset: int) -> None:
        """Make the entries of what is stored compressed, from an offset (bytes) on."""
        for number, stream in enumerate(self._streams):
            if len(stream) < self._geometry.cluster_size:
                self.entries[number] = self._geometry.compressed_entry(offset, len(stream))
                offset += len(stream)
