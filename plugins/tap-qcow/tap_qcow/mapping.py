"""Where a sector of the disk lies: what header and tables say of it."""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from tap_qcow.entries import Entries
from tap_qcow.header import Header
from tap_qcow.layout import COMPRESSED
from tap_qcow.tables import Table, Tables
from tapcore import SECTOR_SHIFT, ImageFile, ImageFormatError

HOLE: Final = 0
PLAIN: Final = 1
DEFLATED: Final = 2
MISSING: Final = 3


class Run(NamedTuple):
    """Sectors that are stored in one way.

    Attributes:
        kind: HOLE, PLAIN, DEFLATED (then inside one cluster), or MISSING: plain, in clusters that
            begin past the end of the file.
        sector: the first one.
        nb_sectors: how many.
        where: PLAIN, MISSING: the byte offset in the file; DEFLATED: the L2 entry.
    """

    kind: int
    sector: int
    nb_sectors: int
    where: int


class ClusterMap:
    """The map from the disk to the file.

    Args:
        file: the image file.
        header: of it.
        l1: its L1 table.
        little: the L1 table is little-endian in the file, as old versions of blktap wrote it.
        cache: bytes of L2 tables to keep; None: as many as `Tables` chooses.

    Attributes:
        file: as given.
        header: as given; on disk but for what is being changed.
        geometry: sizes and shifts.
        sectors: of the disk.
        little: as given.
        tables: L1 and L2.
        metadata_end: behind the header, the parent's name and the L1 table; bytes.
    """

    def __init__(
        self, file: ImageFile, header: Header, l1: Entries, cache: int | None, *, little: bool
    ) -> None:
        self.file = file
        self.geometry = header.geometry
        self.sectors = header.sectors
        self.little = little
        self.use_header(header)
        self.tables = Tables(file, header.geometry, l1, self.check_table, cache)

    def use_header(self, header: Header) -> None:
        """Another header has been written; name and L1 table may lie elsewhere than before."""
        self.header = header
        self._places = header.places()
        self.metadata_end = max(end for _, end in self._places)

    # ---- lookup -----------------------------------------------------------------------------

    def place(self, sector: int, nb_sectors: int) -> int:
        """The short way to where a range lies in the file, for nearly every small request.

        Returns:
            The byte offset, if the range is one plain run and its table is in memory; 0 where it is
            not, or where `run` has to say what is wrong.
        """
        geometry = self.geometry
        table = self.tables.get(sector >> geometry.table_shift)
        if table is None:
            return 0
        at = (sector >> geometry.cluster_shift) & geometry.entry_mask
        skip = sector & geometry.sector_mask
        more = (skip + nb_sectors - 1) >> geometry.cluster_shift
        entries = table.entries
        entry, size = entries[at], geometry.cluster_size
        if entry < self.metadata_end or entry + more * size >= self.file.size or entry & 511:
            return 0
        if more:
            wanted = range(entry + size, entry + more * size + 1, size)
            named = entries[at + 1 : at + more + 1].tolist()
            if at + more > geometry.entry_mask or named != [*wanted]:
                return 0
        return entry + (skip << SECTOR_SHIFT)

    def run(self, table: Table, sector: int, stop: int) -> Run:
        """The run that begins at a sector.

        Args:
            table: that maps the sector.
            sector: the first one.
            stop: nothing from this sector on is of interest; not past what the table maps.

        Raises:
            ImageFormatError: a table entry is not possible.
        """
        geometry = self.geometry
        shift = geometry.cluster_shift
        at = (sector >> shift) & geometry.entry_mask
        skip = sector & geometry.sector_mask
        entry = table.entries[at]
        if entry & COMPRESSED:
            return Run(DEFLATED, sector, min(sector - skip + (1 << shift), stop) - sector, entry)
        count = self._alike(table.entries, at, ((stop - 1) >> shift) & geometry.entry_mask)
        kind = PLAIN if entry else HOLE
        if entry:
            length = count << geometry.cluster_bits
            self.check_clusters(entry, length)
            if entry + length - geometry.cluster_size >= self.file.size:
                kind, count = self._in_file(entry, count)
        until = min(sector - skip + (count << shift), stop)
        return Run(kind, sector, until - sector, entry + (skip << SECTOR_SHIFT) if entry else 0)

    def _alike(self, entries: Entries, at: int, last: int) -> int:
        """How many entries name holes, or clusters side by side, as the first of them does."""
        entry = entries[at]
        step = self.geometry.cluster_size if entry else 0
        next_one, expected = at + 1, entry + step
        while next_one <= last and entries[next_one] == expected:
            next_one += 1
            expected += step
        return next_one - at

    def _in_file(self, entry: int, count: int) -> tuple[int, int]:
        """Of clusters side by side, of which the last begin past the file's end: the first ones.

        Returns:
            PLAIN and how many are there, or MISSING and all.
        """
        inside = -((entry - self.file.look_again()) // self.geometry.cluster_size)
        return (PLAIN, min(inside, count)) if inside > 0 else (MISSING, count)

    # ---- what an entry can say --------------------------------------------------------------

    def check_table(self, offset: int, length: int) -> None:
        """Raise ImageFormatError where a table cannot lie.

        Args:
            offset: bytes.
            length: bytes.
        """
        self.check_clusters(offset, length)
        if offset >= self.file.size and offset >= self.file.look_again():
            text = f"its L2 table, at offset {offset:#x}, lies past the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)

    def check_clusters(self, offset: int, length: int) -> None:
        """The same for plain clusters, which may be missing: past the end of the file."""
        stop = offset + length
        if offset & 511 or (offset < self.metadata_end and self._over_metadata(offset, stop)):
            raise ImageFormatError(f"has an impossible table entry ({offset:#x})", errno=errno.EIO)

    def _over_metadata(self, offset: int, stop: int) -> bool:
        return any(offset < end and start < stop for start, end in self._places)
