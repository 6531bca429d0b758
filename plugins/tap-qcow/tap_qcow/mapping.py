"""Where a sector of the disk lies, as header and tables say; and how they come to say it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from tap_qcow.header import HEADER, Header
from tap_qcow.layout import COMPRESSED
from tap_qcow.missing import find_lost
from tap_qcow.space import Space
from tap_qcow.tables import L2, LITTLE, l1_of, read_l2
from tapcore import SECTOR_SHIFT, DiskDriver, ImageFile, ImageFormatError, NotSupportedError
from tapcore.clusters import (
    ASK,
    DATA,
    HOLE,
    NOWHERE,
    PACKED,
    DeflatedClusters,
    Numbers,
    PackingMap,
    Picture,
    Place,
    Read,
    Run,
    Table,
    TableCache,
    WritableTableMap,
)
from tapcore.deflate import deflate

if TYPE_CHECKING:
    from tapcore.sectorcipher import SectorCipher


class QcowMap(WritableTableMap[Table], PackingMap):
    """The map from the disk to the file.

    Args:
        dd: the image in its chain.
        file: the image file.
        header: of it.
        cipher: of an encrypted image whose content is wanted.

    Attributes:
        header: as given; on disk but for what is being changed.
        geometry: sizes and shifts.
        deflated: reads compressed clusters.
        l1: the table that names all others.
        space: where the next cluster goes.
        metadata_end: behind the header, the parent's name and the L1 table; bytes.
    """

    zero_is_new = True

    def __init__(
        self, dd: DiskDriver[Any], file: ImageFile, header: Header, cipher: SectorCipher | None
    ) -> None:
        geometry = header.geometry
        super().__init__(file, header.sectors, geometry.cluster_size)
        self._dd = dd
        self.geometry = geometry
        self.table_shift = geometry.table_shift
        self.table_bytes = size = geometry.table_bytes
        self.cipher, self.encrypted = cipher, header.encrypted
        self.unpacker = self.deflated = DeflatedClusters(
            file, geometry.cluster_size, geometry.compressed
        )
        l1 = file.read_metadata(header.l1_offset, header.l1_bytes)
        self.l1 = l1_of(l1, header.l1_offset, file.size)
        self.use_header(header)
        self.tables = TableCache(file, self.read_table, size, dd.options.metadata_cache, self.l1)
        self._young = self.tables.young
        self.space = Space(geometry, file.size, paged=header.xen is not None)

    @property
    def little(self) -> bool:
        """The L1 table is little-endian in the file, as old versions of blktap wrote it."""
        return self.l1.coding is LITTLE

    def use_header(self, header: Header) -> None:
        """Another header has been written; name and L1 table may lie elsewhere than before."""
        self.header = header
        self.l1.offset = header.l1_offset
        self._places = header.places()
        self.metadata_end = max(end for _, end in self._places)

    # ---- lookup -----------------------------------------------------------------------------

    def place(self, sector: int, nb_sectors: int) -> int:
        """By an entry, or by some that name clusters side by side."""
        geometry = self.geometry
        table = self._young.get(sector >> geometry.table_shift)
        if table is None:
            return ASK
        at = (sector >> geometry.cluster_shift) & geometry.entry_mask
        skip = sector & geometry.sector_mask
        more = (skip + nb_sectors - 1) >> geometry.cluster_shift
        entries = table.entries
        entry = entries[at]
        if not self.metadata_end <= entry < COMPRESSED or entry & 511:
            return ASK if entry or more else NOWHERE
        if more:
            size = geometry.cluster_size
            wanted = range(entry + size, entry + more * size + 1, size)
            named = entries[at + 1 : at + more + 1].tolist()
            if at + more > geometry.entry_mask or named != [*wanted]:
                return ASK
        return entry + (skip << SECTOR_SHIFT)

    place_to_write = place

    def table_place(self, index: int) -> int:
        """As the L1 table says."""
        offset = self.l1.entries[index]
        if offset and index not in self.tables:
            self.check_place(offset, self.table_bytes)
        return offset

    def read_table(self, index: int, read: Read) -> Table | None:
        """An L2 table."""
        return read_l2(self.file, index, self.table_place(index), self.table_bytes, read)

    def run_in(self, table: Table, sector: int, stop: int) -> Run:
        """As the entries of an L2 table say."""
        geometry = self.geometry
        shift = geometry.cluster_shift
        at = (sector >> shift) & geometry.entry_mask
        skip = sector & geometry.sector_mask
        entry = table.entries[at]
        if entry & COMPRESSED:
            return Run(PACKED, sector, min(sector - skip + (1 << shift), stop) - sector, entry)
        count = self._alike(table.entries, at, ((stop - 1) >> shift) & geometry.entry_mask)
        until = min(sector - skip + (count << shift), stop)
        if not entry:
            return Run(HOLE, sector, until - sector)
        self.check_place(entry, count << geometry.cluster_bits)
        return Run(DATA, sector, until - sector, entry + (skip << SECTOR_SHIFT))

    def _alike(self, entries: Numbers, at: int, last: int) -> int:
        """How many entries name holes, or clusters side by side, as the first of them does."""
        entry = entries[at]
        step = self.geometry.cluster_size if entry else 0
        next_one, expected = at + 1, entry + step
        while next_one <= last and entries[next_one] == expected:
            next_one += 1
            expected += step
        return next_one - at

    def check_place(self, offset: int, length: int) -> None:
        """Raise ImageFormatError where no table or cluster can lie (bytes)."""
        if offset & 511 or (offset < self.metadata_end and self._over_metadata(offset, length)):
            raise ImageFormatError(f"has an impossible table entry ({offset:#x})", errno=errno.EIO)

    def _over_metadata(self, offset: int, length: int) -> bool:
        return any(offset < end and start < offset + length for start, end in self._places)

    # ---- changing ---------------------------------------------------------------------------

    def begin_writing(self) -> None:
        """What is lost must not get the place of what is new."""
        lost = find_lost(self, self.geometry, self.l1.entries)
        if lost is None:
            return
        if self._dd.options.missing == "error":
            text = "it is damaged, and not written; convert --salvage copies what is there"
            raise ImageFormatError(f"{lost}: {text}", errno=errno.EIO)
        self._dd.td_state.losses.log_zeroed(self._dd.name, str(lost))
        self.file.truncate_up(lost.end)
        self.space.end = max(self.space.end, lost.end)

    def allocate(self, sector: int, count: int) -> Place:
        """At the end of the file, behind a new table where one is needed."""
        self._need_table(sector)
        return Place(self.space.allocate(count), count, True)

    def _need_table(self, sector: int) -> None:
        index = sector >> self.table_shift
        if not self.l1.entries[index]:
            offset = self.space.allocate_table()
            self.tables.add(Table(index, offset, L2.zeroes(self.table_bytes // 8), L2))
            self.l1.set(index, (offset,))

    def link(self, sector: int, stop: int, where: int) -> None:
        """Name clusters side by side."""
        size = self.geometry.cluster_size
        count = -(-(stop - sector) >> self.cluster_shift)
        if count == 1:
            self._set_one(sector, where)
            return
        table, first = self._entry_of(sector)
        self.tables.set(table, first, range(where, where + count * size, size))

    def _set_one(self, sector: int, entry: int) -> None:
        table, at = self._entry_of(sector)
        self.tables.set_one(table, at, entry)

    def _entry_of(self, sector: int) -> tuple[Table, int]:
        """Where the entry of a sector's cluster is: its table, and its number there."""
        index = sector >> self.table_shift
        table = self._young.get(index) or self.tables.wait(index)
        return table, (sector >> self.cluster_shift) & self.geometry.entry_mask

    def picture(self) -> Picture:
        """New L2 tables, then what names them and their clusters.

        What blktap keeps behind the header has to say that tables change, before one does.
        """
        xen = self.header.xen if self.tables.dirty else None
        changed = xen.for_changes(little=self.little) if xen is not None else None
        taken = self.tables.take()

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 1)
            if changed is not None and not failed:
                self.header.xen = changed

        before = [(HEADER.size, changed.pack())] if changed is not None else []
        return Picture([before + taken.fresh, taken.changed], conclude)

    # ---- compressed clusters ----------------------------------------------------------------

    def check_packing(self) -> None:
        """Not in an encrypted image: nobody would look for plain content there."""
        if self.encrypted:
            raise NotSupportedError("is encrypted, and cannot hold compressed clusters")

    def pack(self, content: bytes | memoryview) -> bytes:
        """A raw deflate stream."""
        return deflate(content)

    def allocate_packed(self, sector: int, length: int) -> int:
        """At the end of the file, wherever that is."""
        self._need_table(sector)
        return self.space.allocate_compressed(length)

    def link_packed(self, sector: int, where: int, length: int) -> int:
        """By an entry of its own kind."""
        entry = self.geometry.compressed_entry(where, length)
        self._set_one(sector, entry)
        return entry
