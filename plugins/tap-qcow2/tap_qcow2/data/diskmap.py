"""Where the sectors of the disk lie, and how that is changed.

Source: qcow2.rst, "Cluster mapping", "Extended L2 Entries", "Compressed Clusters Descriptor".
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from tap_qcow2.data.codecs import codec, inflate_into
from tap_qcow2.data.unopened import UnopenedFile
from tap_qcow2.ondisk.entries import (
    ALL_DATA,
    copied,
    offset_of,
    subclusters,
    with_data,
)
from tap_qcow2.ondisk.header import Header
from tap_qcow2.tables.l2tables import L2Table
from tap_qcow2.tables.links import check_for_writing, own_table, release
from tap_qcow2.tables.mapping import L2Map
from tap_qcow2.tables.metadata import Metadata
from tap_qcow2.tables.writeback import Stages
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    ImageFile,
    ImageFormatError,
    NotSupportedError,
)
from tapcore.clusters import (
    DATA,
    HOLE,
    PACKED,
    DamagedTable,
    DeflatedClusters,
    PackingMap,
    Picture,
    Place,
    Run,
    WritableTableMap,
    same_until,
)

if TYPE_CHECKING:
    from tap_qcow2.data.clearing import Clearing

log = logging.getLogger(__name__)

_MOST: Final = 1024
"""Clusters that are looked at for one step of a write."""

MOST_RELEASED: Final = 65536
"""Clusters given up that wait to be counted down; beyond it a write-back begins by itself."""


class DiskMap(L2Map, WritableTableMap[L2Table], PackingMap):
    """The map of an open image's disk.

    Args:
        dd: the image in its chain.
        file: the image file.
        metadata: of the image.
        data: the external data file, if it is open.

    Attributes:
        dd: as given.
        header: as it is to be; most of it is on disk.
        metadata: header and tables in memory.
        stages: says what a write-back brings to the disk.
        elsewhere: the content lies in an external data file.
    """

    reuses_space: ClassVar[bool] = True
    zeroes_in_place: ClassVar[bool] = False

    def __init__(
        self, dd: DiskDriver, file: ImageFile, metadata: Metadata, data: ImageFile | None
    ) -> None:
        self.header: Header = metadata.header
        sectors = self.header.size >> SECTOR_SHIFT
        self.elsewhere = metadata.decoder.elsewhere
        if self.elsewhere and data is None:
            data = UnopenedFile()
        super().__init__(file, metadata.decoder, metadata.tables, sectors, data)
        self.dd = dd
        self.metadata = metadata
        self.stages = Stages(dd.name, metadata, self.damaged)
        self.encrypted = bool(self.header.crypt_method)
        size, place_of = self.geometry.cluster_size, self.decoder.compressed_range
        straight = inflate_into(self.header.compression_type)
        self.unpacker = DeflatedClusters(file, size, place_of, self._inflate, straight)
        self.zero_is_new = not self.geometry.extended
        self._clearing: Clearing | None = None  # loaded when something is cleared

    @abstractmethod
    def damaged(self, reason: str) -> None:
        """Damage was found that concerns no request."""

    # ---- writing ----------------------------------------------------------------------------

    def run_to_write(self, sector: int, stop: int) -> Run | None:
        """What has one COPIED flag; of what has no content, the space that is kept is told, too.

        Raises:
            DamagedTable: something in the table leads to the image's own tables.
            ImageFormatError: as `run`.
        """
        index = sector >> self.table_shift
        table = self.tables.young.get(index)
        if table is None:
            run = self.run(sector, stop)
            table = self.tables.get(index)
            if run is None or table is None:
                return run
        if not table.sound:
            self._check(table)
        # not all of the table: what is found is cut where the flag changes, and looked for again
        stop = min(stop, (index + 1) << self.table_shift, sector + (_MOST << self.cluster_shift))
        if self.geometry.extended:
            return self._extended_run_to_write(table, sector, stop)
        run = self.run_in(table, sector, stop)
        return run if run.where < 0 or run.kind == PACKED else self._flagged(table, run)

    def run_to_clear(self, sector: int, stop: int) -> Run | None:
        """As `run_to_write`; without a parent all that has no tables is one hole."""
        index = sector >> self.table_shift
        l1 = self.tables.l1
        if self.dd.next is None and index < len(l1) and not l1[index]:
            last = min(len(l1), ((stop - 1) >> self.table_shift) + 1)
            end = same_until(l1, index, last) << self.table_shift
            return Run(HOLE, sector, min(stop, end) - sector)
        return self.run_to_write(sector, stop)

    def _check(self, table: L2Table) -> None:
        try:
            check_for_writing(self.metadata, table)
        except ImageFormatError as exc:
            raise DamagedTable(exc.message, errno=exc.errno) from None

    def _flagged(self, table: L2Table, run: Run) -> Run:
        """The part of a run with space that can be written in place, or that cannot."""
        geometry = self.geometry
        shift, words = geometry.cluster_shift, geometry.words
        at = (run.sector >> shift) & geometry.entry_mask
        last = ((run.end - 1) >> shift) & geometry.entry_mask
        own, more = copied(table.entries[at * words]), at + 1
        if at == last:
            return run if own else run._replace(own=False)
        while more <= last and copied(table.entries[more * words]) == own:
            more += 1
        end = ((run.sector >> shift) + more - at) << shift
        return run.upto(end) if own else run.upto(end)._replace(own=False)

    def _extended_run_to_write(self, table: L2Table, sector: int, stop: int) -> Run:
        """The same by subclusters: those without content may lie in a cluster that has space."""
        geometry, at = self.geometry, self._at(sector)
        entry, bitmap = table.entries[at], table.entries[at + 1]
        skip, kept = sector & geometry.sector_mask, self.decoder.refers(entry)
        where = offset_of(entry) + (skip << SECTOR_SHIFT)
        kind = self._kind_within(table.entries, at, skip, stop - sector)
        if kind == DATA or (kind >= 0 and kept):
            return Run(kind, sector, stop - sector, where, copied(entry))
        if kind >= 0:
            return Run(kind, sector, stop - sector)
        if kept and bitmap != ALL_DATA:
            stop = min(stop, (sector | geometry.sector_mask) + 1)
        run = self.run_in(table, sector, stop)
        if run.kind == DATA:
            return self._flagged(table, run)
        if run.kind == PACKED:
            return run
        if kept:
            return run._replace(where=where, own=copied(entry))
        return run.upto(self._without_space(table, run))

    def _without_space(self, table: L2Table, run: Run) -> int:
        """Up to which sector no cluster of a run has space, as its first one has none."""
        shift, mask = self.cluster_shift, self.geometry.entry_mask
        at, last = (run.sector >> shift) & mask, ((run.end - 1) >> shift) & mask
        entries = table.entries[at * 2 : (last + 1) * 2 : 2]
        if not any(entries):
            return run.end
        number = next(number for number, entry in enumerate(entries) if entry)
        return ((run.sector >> shift) + number) << shift

    def allocate(self, sector: int, count: int) -> Place:
        """Free clusters; in a data file each has its place."""
        bits, allocator = self.geometry.cluster_bits, self.metadata.allocator
        if self.elsewhere:
            return Place(sector << SECTOR_SHIFT, count)
        end = allocator.end
        cluster, count = allocator.allocate(count)
        where = cluster << bits
        return Place(where, count, where >= end)

    def give_back(self, where: int, count: int) -> None:
        """Count them down; what fails is told, and no more, since a reason to fail was before."""
        if self.elsewhere:
            return
        try:
            self.metadata.allocator.take_back(where >> self.geometry.cluster_bits, count)
        except ImageFormatError as exc:
            self.damaged(exc.message)
        except OSError as exc:
            log.warning("%s: clusters are leaked: %s", self.dd.name, exc.strerror)

    def link(self, sector: int, stop: int, where: int) -> None:
        """By entries of plain clusters, or bits of subclusters."""
        table = own_table(self.metadata, sector >> self.table_shift)
        if self.geometry.extended:
            self._link_subclusters(table, sector, stop, where)
            return
        at = (sector >> self.cluster_shift) & self.geometry.entry_mask
        count = (stop - sector) >> self.cluster_shift
        if count == 1:
            if entry := table.entries[at]:
                release(self.metadata, entry, where)
            self.tables.set_one(table, at, self.decoder.plain(where))
            return
        size, old = self.geometry.cluster_size, table.entries[at : at + count]
        if any(old):
            for number, entry in enumerate(old):
                if entry:
                    release(self.metadata, entry, where + number * size)
        first = self.decoder.plain(where)
        self.tables.set(table, at, range(first, first + count * size, size))

    def _link_subclusters(self, table: L2Table, sector: int, stop: int, where: int) -> None:
        mask = self.geometry.sector_mask
        while sector < stop:
            until = min((sector | mask) + 1, stop)
            self._link_in_cluster(table, sector, until, where)
            where += (until - sector) << SECTOR_SHIFT
            sector = until

    def _link_in_cluster(self, table: L2Table, sector: int, until: int, where: int) -> None:
        geometry = self.geometry
        unit, skip = geometry.unit >> SECTOR_SHIFT, sector & geometry.sector_mask
        chosen = subclusters(skip // unit, (skip + until - sector) // unit)
        host, at = where - (skip << SECTOR_SHIFT), self._at(sector)
        entry, bitmap = table.entries[at], table.entries[at + 1]
        if entry:
            release(self.metadata, entry, host)
        self.tables.set_one(table, at, self.decoder.plain(host))
        bitmap = ALL_DATA if chosen == ALL_DATA else with_data(bitmap, chosen)
        self.tables.set_one(table, at + 1, bitmap)

    def _set(self, table: L2Table, sector: int, entry: int, bitmap: int = 0) -> None:
        self.tables.set(table, self._at(sector), (entry, bitmap)[: self.geometry.words])

    def _at(self, sector: int) -> int:
        return ((sector >> self.cluster_shift) & self.geometry.entry_mask) * self.geometry.words

    def clear(self, run: Run, *, discard: bool, may_unmap: bool) -> int:
        """By entries that say so."""
        return self._clear(run.sector, run.end, discard, may_unmap)

    def _clear(self, sector: int, stop: int, discard: bool, may_unmap: bool) -> int:
        if self._clearing is None:
            from tap_qcow2.data.clearing import Clearing

            self._clearing = Clearing(self.dd, self.metadata, self.data)
        return self._clearing.clear(sector, stop, discard, may_unmap)

    def clear_now(self, sector: int, stop: int, discard: bool, may_unmap: bool) -> bool:
        """Of standard entries, which can say it whatever they say now."""
        index = sector >> self.table_shift
        table = self.tables.young.get(index)
        return (
            table is not None
            and table.sound
            and index == (stop - 1) >> self.table_shift
            and stop - sector <= _MOST << self.cluster_shift
            and not self.geometry.extended
            and not self._clear(sector, stop, discard, may_unmap)
        )

    # ---- compressed clusters ----------------------------------------------------------------

    def _inflate(self, stream: bytes, limit: int) -> bytes:
        return codec(self.header.compression_type)[0](stream, limit)

    def check_packing(self) -> None:
        """Not where nobody would look for them."""
        if self.elsewhere:
            raise NotSupportedError(
                "has an external data file, which cannot hold compressed clusters"
            )
        if self.cipher is not None:
            raise NotSupportedError("is encrypted, and cannot hold compressed clusters besides")

    def pack(self, content: bytes | memoryview) -> bytes:
        """As the header says."""
        return codec(self.header.compression_type)[1](content)

    def allocate_packed(self, sector: int, length: int) -> int:
        """Behind the last one, where there is room."""
        return self.metadata.allocator.allocate_bytes(length)

    def give_back_packed(self, where: int, length: int) -> None:
        """All clusters that it touches."""
        bits = self.geometry.cluster_bits
        first, last = where >> bits, (where + length - 1) >> bits
        self.give_back(first << bits, last - first + 1)

    def link_packed(self, sector: int, where: int, length: int) -> int:
        """By an entry of its own kind, which is the token."""
        table = own_table(self.metadata, sector >> self.table_shift)
        release(self.metadata, table.entries[self._at(sector)])
        token = self.decoder.compressed_at(where, length)
        self._set(table, sector, token)
        return token

    # ---- write-back -------------------------------------------------------------------------

    @property
    def must_write_back(self) -> bool:
        """By the tables with changes, and by what was given up."""
        tables = self.tables
        many = len(tables.dirty) > tables.most >> 1
        return many or len(self.metadata.refcounts.released) > MOST_RELEASED

    def picture(self) -> Picture:
        """In three stages."""
        return self.stages.picture()
