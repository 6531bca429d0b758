"""The map of a sparse file that is written: new grains, and tables that have places of their own.

An entry of a table is changed in memory when its grain is written, and on disk with a later
write-back, after what it points to. So whatever a crash leaves, an entry on disk points to content.
"""

from __future__ import annotations

import errno
from array import array
from typing import Final

from tap_vmdk.sparse.directories import without_tables
from tap_vmdk.sparse.entries import LAST_SECTOR, ZERO
from tap_vmdk.sparse.grainmap import DAMAGED_DIRECTORY, DAMAGED_TABLE, GrainMap
from tap_vmdk.sparse.graintable import Directory, GrainTable
from tap_vmdk.sparse.header import UNCLEAN_OFFSET, SparseHeader
from tap_vmdk.sparse.layout import Layout
from tap_vmdk.sparse.sizes import round_up
from tapcore import DiskDriver, ImageFile, ImageFormatError, clusters
from tapcore.clusters import Picture, Place, Run, rising_until

_MOST_HEAD: Final = 1 << 30
"""Bytes past the file's end that are believed to be kept free for metadata."""


class WritableGrainMap(GrainMap, clusters.WritableTableMap[GrainTable]):
    """The same of a file that grains are added to.

    Args:
        dd: the disk that it is a part of.
        file: open.
        layout: of it.
        header: of it.

    Attributes:
        header: as given.
    """

    zero_is_new = True

    def __init__(
        self, dd: DiskDriver, file: ImageFile, layout: Layout, header: SparseHeader
    ) -> None:
        super().__init__(dd, file, layout)
        self.header = header
        self._places = self.watch_metadata()
        if header.overhead << 9 <= file.size + _MOST_HEAD:
            self.end = max(self.end, round_up(header.overhead, layout.grain))
        self._stop = self._lost_table()

    def _lost_table(self) -> int:
        """The first place past the end of the file where a directory says that a table is.

        Nothing may come to lie there: it would be taken for that table.
        """
        last = (self.file.size - self.table_bytes) >> 9
        stop = LAST_SECTOR + 1
        for directory in (self.directory, self.spare):
            if directory and max(directory) > last:
                stop = min(stop, min(place for place in directory if place > last))
        return stop

    # ---- the first change, and the end ------------------------------------------------------

    def keep_free(self, end: int) -> None:
        """What lies before a sector of the file becomes a hole, as it reads anyway; new grains go
        behind.

        Raises:
            ImageFormatError: a table that is lost would be a hole, too.
            OSError: the file could not be made longer.
        """
        if end > self._stop:
            raise ImageFormatError(DAMAGED_DIRECTORY)
        self.file.truncate_up(end << 9)
        self.file_grew()

    def begin_writing(self) -> None:
        """Say in the header that the file is in use, as VMware does."""
        self.file.write_metadata(UNCLEAN_OFFSET, b"\1")

    def finish(self) -> None:
        """Say in the header that the file was closed."""
        self.file.write_metadata(UNCLEAN_OFFSET, b"\0")

    # ---- requests ---------------------------------------------------------------------------

    def place_to_write(self, sector: int, nb_sectors: int) -> int:
        """As `place`, of grains that there are."""
        table = self._young.get(sector >> self.table_shift)
        skip = sector & self.grain_mask
        if table is None or not table.sound:
            return clusters.ASK
        at = (sector >> self.grain_shift) & self.entry_mask
        place = table.entries[at]
        if place <= ZERO:
            return clusters.ASK
        if skip + nb_sectors > self.grain_mask + 1:  # in several grains, side by side
            stop = at + ((skip + nb_sectors - 1) >> self.grain_shift) + 1
            step = self.grain_mask + 1
            if stop > self.entry_mask + 1 or rising_until(table.entries, at, stop, step) < stop:
                return clusters.ASK
        return (place + skip) << 9

    def run_to_write(self, sector: int, stop: int) -> Run | None:
        """Nothing is written over metadata, whatever an entry says."""
        run = self.run(sector, stop)
        if run is None or run.kind != clusters.DATA:
            return run
        table = self.tables.get(sector >> self.table_shift)
        assert table is not None
        if not table.sound and self._places.touches(run.where >> 9, run.nb_sectors):
            raise ImageFormatError(DAMAGED_TABLE)
        return run

    def take(self, sectors: int) -> int:
        """Space at the end of the file.

        Args:
            sectors: whole grains.

        Returns:
            Its first sector.

        Raises:
            ImageFormatError: a table that is lost was there.
            OSError: an entry could not point there.
        """
        place, end = self.end, self.end + sectors
        if end > self._stop:
            raise ImageFormatError(DAMAGED_DIRECTORY)
        if end > LAST_SECTOR:
            raise OSError(errno.EFBIG, "the file would exceed 2 TiB")
        self.end = end
        return place

    def allocate(self, sector: int, count: int) -> Place:
        """Behind everything, once their table can be changed."""
        if sector >> self.table_shift not in self.sure:
            self._own_table(sector)
        return Place(self.take(count << self.grain_shift) << 9, count, True)

    def link(self, sector: int, stop: int, where: int) -> None:
        """Change the entries."""
        first, count = where >> 9, stop - sector
        if count == self.layout.grain:
            table = self._own_table(sector)
            self.tables.set_one(table, (sector >> self.grain_shift) & self.entry_mask, first)
        else:
            self._set_entries(sector, range(first, first + count, self.layout.grain))

    def clear(self, run: Run, *, discard: bool, may_unmap: bool) -> int:
        """Entries can say it, of a hole that a parent may show through; the file does the rest."""
        hides = run.kind == clusters.HOLE and self.dd.next is not None
        if discard or not (hides and may_unmap and self.layout.zeroes and self.whole_directories):
            return -errno.EOPNOTSUPP
        self._set_entries(run.sector, [ZERO] * -(-run.nb_sectors // self.layout.grain))
        return 0

    def _set_entries(self, sector: int, entries: range | list[int]) -> None:
        table = self._own_table(sector)
        self.tables.set(table, (sector >> self.grain_shift) & self.entry_mask, entries)

    # ---- tables -----------------------------------------------------------------------------

    def _own_table(self, sector: int) -> GrainTable:
        """A table, which is in memory if there is one, with its own place in both directories.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        index = sector >> self.table_shift
        table = self._young.get(index) or self.tables.get(index)
        if index in self.sure and table is not None:
            return table
        place = self.directory[index]
        if table is not None and not table.sound:
            raise ImageFormatError(DAMAGED_TABLE)
        if not self.whole_directories or (place and not self.table_at(place)):
            raise ImageFormatError(DAMAGED_DIRECTORY)
        if table is None:
            assert not place
            table = GrainTable(index, 0, self.empty[:])
        if self._is_in_place(table):
            table.copy = 0 if self.spare is None else self.spare[index] << 9
        else:
            self._give_place(table)
        self.sure.add(index)
        return table

    def _is_in_place(self, table: GrainTable) -> bool:
        """Whether what a directory names is surely a table, and nobody else's.

        It lies among the metadata, or holds the same entries as its copy.
        """
        index, shared = table.index, self._places.shared
        places = [self.directory[index]]
        if self.spare is not None:
            places.append(self.spare[index])
        if not all(map(self.table_at, places)):
            return False
        if (0, index) in shared or (1, index) in shared:
            return False
        found = {self.file.read_metadata(place << 9, self.table_bytes) for place in places}
        if len(found) > 1:
            return False
        head = self.header.overhead - self.header.table_sectors
        return all(place <= head for place in places) or (len(places) > 1 and any(found.pop()))

    def _give_place(self, table: GrainTable) -> None:
        """Take space for a table, and for its copy."""
        directory, sectors = self.tables.directory, self.header.table_sectors
        assert isinstance(directory, Directory)
        size = round_up(sectors if self.spare is None else 2 * sectors, self.layout.grain)
        place = self.take(size)
        self.file.truncate_up((place + size) << 9)
        table.offset = place << 9
        table.copy = 0 if self.spare is None else (place + sectors) << 9
        directory.name(table.index, place, place + sectors)
        self.tables.add(table)

    @property
    def full(self) -> bool:
        """Never: no part of a disk may refuse what another one has begun."""
        return False

    def picture(self) -> Picture:
        """New tables first; then what has changed, and what names them."""
        taken = self.tables.take()

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 1)

        return Picture([taken.fresh, taken.changed], conclude)

    # ---- emptying ---------------------------------------------------------------------------

    def make_empty(self) -> None:
        """Turn every grain into a hole, on disk when this returns; nothing may be unsaved.

        Raises:
            ImageFormatError: a table lies over other metadata.
            OSError: as the system says.
        """
        file, layout = self.file, self.layout
        if self._places.shared or not self.whole_directories:
            raise ImageFormatError(DAMAGED_DIRECTORY)
        end = max(min(self.header.overhead, LAST_SECTOR), layout.first_grain)
        for offset in layout.directories:
            end = max(end, (offset + layout.directory_bytes + 511) >> 9)
        for directory in (self.spare, self.directory):  # the copies first: they know less
            end = max(end, self._empty_tables(directory) if directory is not None else 0)
        self.tables.forget()
        file.make_safe()
        end = round_up(end, layout.grain)
        if file.size > end << 9:
            file.resize(end << 9)
        self.end = end
        file.make_safe()

    def _empty_tables(self, directory: array[int]) -> int:
        """Fill the tables of a directory with holes; returns the first sector past all of them."""
        end, index = 0, 0
        while index < len(directory):
            place = directory[index]
            if not place:
                index += without_tables(directory, index, len(directory))
                continue
            count = self.tables_in_hole(directory, index, len(directory))
            if not count and self.table_at(place):
                self.file.write_metadata(place << 9, bytes(self.table_bytes))
                count = 1
            if count:
                end = max(end, directory[index + count - 1] + self.header.table_sectors)
            index += count or 1
        return end
