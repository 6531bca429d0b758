"""Where the grains of a sparse file lie: its grain directories, and grain tables kept in memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from tap_vmdk.sparse.directories import in_sequence, read_directories, without_tables
from tap_vmdk.sparse.entries import HOLE, ZERO
from tap_vmdk.sparse.layout import Layout, round_up
from tap_vmdk.sparse.metadata import MetadataPlaces
from tapcore import ImageFile, ImageFormatError

DAMAGED: Final = -1
"""What `GrainMap.run` says of grains whose entry cannot be true."""

DAMAGED_TABLE: Final = "a grain table is damaged; check --repair all mends it"
DAMAGED_DIRECTORY: Final = "a grain directory is damaged; check --repair all mends it"

DEFAULT_CACHE: Final = 32 << 20
"""Bytes of grain tables kept in memory for each file: enough for 512 GiB in grains of 64 KiB."""


_OVERHEAD: Final = 200
"""Bytes that Python needs for a table, besides its entries."""


class GrainMap:
    """The tables of one sparse file.

    Args:
        file: open.
        layout: of it.
        cache_bytes: of tables to keep; those with unsaved entries are kept in any case.

    Attributes:
        file: as given.
        layout: as given.
        cache_bytes: as given.
        faults: of each directory, what is wrong with it: it must lie in the file, and over nothing
            else.
        whole_directories: all are.
        only_spare: the directory in use is the redundant one.
        directory: sectors of the tables; 0 for a table that is not there.
        spare: the same of the redundant directory, where there is one and it is sound too.
        places: of all metadata, where entries that point there must not be written through.
        tables: those in memory whose entries can all be true.
        damaged: those in memory that have entries that cannot be true.
        unsaved: numbers of the tables with entries that are not on disk yet.
        empty: the table that stands for all that hold nothing but holes; not to be changed.
        end: sectors of the file that are used; new grains go behind it.
        generation: changes when tables are dropped: what a thread began to load before may be old.
        why_damaged: what is wrong with all entries that cannot be true, where that is known.
        pinned: keeps tables from being dropped while somebody is about to change one.
    """

    def __init__(self, file: ImageFile, layout: Layout, cache_bytes: int) -> None:
        self.file = file
        self.layout = layout
        self.grain_shift = layout.grain.bit_length() - 1
        self.grain_mask = layout.grain - 1
        self.entry_mask = layout.entries - 1
        self.table_shift = self.grain_shift + layout.entries.bit_length() - 1
        self.tables: dict[int, array[int]] = {}
        self.damaged: dict[int, array[int]] = {}
        self.unsaved: set[int] = set()
        self.pinned = 0
        self.generation = 0
        self._no_grains = bytes(layout.table_bytes)
        self.empty = layout.decode_table(self._no_grains)
        self.cache_bytes = cache_bytes
        self._most = max(cache_bytes // (layout.table_bytes + _OVERHEAD), 16)
        self._size = -(-file.size // 512)  # sectors, as opened
        self.end = round_up(max(self._size, layout.first_grain), layout.grain)
        self._trusted = bytearray(layout.tables)  # tables whose entries were checked once
        self.places: MetadataPlaces | None = None
        self.why_damaged = ""
        self._read_directories()

    def _read_directories(self) -> None:
        found = read_directories(self.file, self.layout)
        self.faults = tuple(fault for _, fault in found)
        self.whole_directories = not any(self.faults)
        usable = [directory for directory, fault in found if not fault]
        if not usable:
            raise ImageFormatError(f"has a grain directory that {self.faults[0]}")
        self.directory = usable[0]
        self.only_spare = bool(self.faults[0])
        self.spare = usable[1] if len(usable) > 1 else None

    def watch_metadata(self) -> MetadataPlaces:
        """Learn where all metadata lies, so that nothing is written through an entry to it."""
        layout = self.layout
        ranges = [layout.directory_range(n) for n, fault in enumerate(self.faults) if not fault]
        directories = [self.directory] if self.spare is None else [self.directory, self.spare]
        self.places = MetadataPlaces(
            [*layout.reserved, *ranges],
            directories,
            layout.table_sectors,
            end=-(-self.file.size // 512),
        )
        return self.places

    # ---- tables -----------------------------------------------------------------------------

    def table_at(self, sector: int) -> bool:
        """Whether a table can lie at a sector, as a directory says: in the file, and neither over
        its header nor over its descriptor."""
        if sector <= 0 or sector * 512 + self.layout.table_bytes > self.file.size:
            return False
        end = sector + self.layout.table_sectors
        return not any(sector < last and first < end for first, last in self.layout.reserved)

    def table_now(self, index: int) -> array[int] | None:
        """A table, if it is in memory or in the page cache."""
        table = self.tables.get(index)
        if table is None:
            table = self.damaged.get(index)
        if table is None:
            table = self.load(index, self.file.metadata_now)
            if table is not None:
                table = self.install(index, table)
        return table

    def table(self, index: int) -> array[int]:
        """A table; waits for the disk.

        Raises:
            OSError: it cannot be read.
            ImageFormatError: the directory does not say where it is.
        """
        table = self.table_now(index)
        if table is None:
            table = self.install(index, self.read(index))
        return table

    def read(self, index: int) -> array[int]:
        """Load a table, waiting for the disk; changes nothing, so that threads may call it.

        Raises:
            OSError: it cannot be read.
            ImageFormatError: the directory does not say where it is.
        """
        table = self.load(index, self.file.read_metadata)
        assert table is not None
        return table

    def load(self, index: int, read: Callable[[int, int], bytes | None]) -> array[int] | None:
        """Load a table by one of the file's ways of reading; None where that would wait."""
        place = self.directory[index]
        if not place:
            return self.empty
        if not self.table_at(place):
            return self._load_spare(index)
        raw = read(place * 512, self.layout.table_bytes)
        if raw is None:
            return None
        if self.places is not None and self.spare is not None and not self._have_spare(index, read):
            return None
        if raw == self._no_grains:
            return self.empty
        table = self.layout.decode_table(raw)
        if self._possible(index, table) or self.spare is None:
            return table
        return self._mend(index, table)

    def _have_spare(self, index: int, read: Callable[[int, int], bytes | None]) -> bool:
        """Bring the redundant table into the page cache: who writes will compare the two."""
        assert self.spare is not None
        place = self.spare[index]
        return not self.table_at(place) or read(place * 512, self.layout.table_bytes) is not None

    def _load_spare(self, index: int) -> array[int]:
        """The table that the other directory names; read at once, as this is rare."""
        place = self.spare[index] if self.spare is not None else 0
        if not self.table_at(place):
            raise ImageFormatError(f"its grain directory has a damaged entry {index}")
        raw = self.file.read_metadata(place * 512, self.layout.table_bytes)
        return self.layout.decode_table(raw)

    def _mend(self, index: int, table: array[int]) -> array[int]:
        """Take from the redundant table what cannot be true in the first one."""
        try:
            other = self._load_spare(index)
        except ImageFormatError:
            return table
        for number, place in enumerate(table):
            if not self.place_possible(place) and self.place_possible(other[number]):
                table[number] = other[number]
        return table

    def _limit(self) -> int:
        """The last sector of the file, as opened, at which a grain may begin."""
        if self.layout.whole:
            return round_up(self._size, self.layout.grain) - self.layout.grain
        return self._size - 1

    def place_possible(self, place: int) -> bool:
        """Whether an entry of the file as it was opened can be true."""
        if place <= ZERO:
            return place == HOLE or self.layout.zeroes
        return self.layout.first_grain <= place <= self._limit()

    def _possible(self, index: int, table: array[int]) -> bool:
        """Whether all entries of a table can be true; after the first time they are ours."""
        if self._trusted[index]:
            return True
        if max(table) > self._limit():
            return False
        first = max(self.layout.first_grain, ZERO + 1)
        least = min(filter(None, table), default=first)
        if least == ZERO and self.layout.zeroes:
            least = min(filter(ZERO.__lt__, table), default=first)
        return least >= first

    def _may_be_written(self, table: array[int]) -> bool:
        """Whether no entry of a table points at metadata; asked only where somebody writes."""
        return self.places is None or not self.places.touched_by(table, self.layout.grain)

    def writable(self, at: int, place: int, count: int) -> bool:
        """Whether sectors that an entry names may be written: no metadata lies there.

        Args:
            at: first sector, of the file's disk.
            place: of it, in the file.
            count: sectors.
        """
        if self.places is None or at >> self.table_shift not in self.damaged:
            return True  # of a table that is whole this was asked when it was loaded
        return not self.places.touches(place, count)

    def install(self, index: int, table: array[int]) -> array[int]:
        """Keep a table that was loaded, unless there is one by now.

        Returns:
            The one that is kept.
        """
        known = self.tables.get(index)
        if known is None:
            known = self.damaged.get(index)
        if known is not None:
            return known
        if not self._trusted[index]:
            if not (self._possible(index, table) and self._may_be_written(table)):
                self.damaged[index] = table
                return table
            self._trusted[index] = 1
        self.tables[index] = table
        if len(self.tables) > self._most:
            self._forget_some()
        return table

    def _forget_some(self) -> None:
        """Drop the tables that have been there longest, but for those with unsaved entries.

        Nor the last one, which somebody is about to use.
        """
        if self.pinned:
            return
        count = max(self._most // 8, 1)
        old = (index for index in list(self.tables)[:-1] if index not in self.unsaved)
        for _, index in zip(range(count), old, strict=False):
            del self.tables[index]
        self.generation += 1

    def set_entries(self, at: int, place: int, count: int) -> None:
        """Change the entries of consecutive grains, to be saved with the next flush.

        Args:
            at: a sector in the first of them.
            place: of the first one, the others follow it; or `HOLE` or `ZERO` for all.
            count: grains, all of one table, which is in memory.

        Raises:
            ImageFormatError: the table is damaged.
        """
        index, first = at >> self.table_shift, (at >> self.grain_shift) & self.entry_mask
        table = self.tables.get(index)
        if table is None:
            raise ImageFormatError(DAMAGED_TABLE)
        if table is self.empty:
            table = self.tables[index] = self.empty[:]
        step = self.layout.grain if place > ZERO else 0
        for number in range(first, first + count):
            table[number] = place
            place += step
        self.unsaved.add(index)

    def empty_tables(self, index: int, end: int) -> int:
        """How many tables from one on hold nothing but holes, told without reading any.

        They are not there, or lie in a hole of the file, and none of them is in memory.

        Args:
            index: of the first.
            end: of those that are of interest.
        """
        if self.pinned:
            return 0  # some may be changed, and on their way to the file
        count = without_tables(self.directory, index, end)
        if not count:
            count = self.tables_in_hole(self.directory, index, end)
        if count and self.unsaved:
            mine = (n for n in self.unsaved if index <= n < index + count)
            count = min(mine, default=index + count) - index
        return count

    def tables_in_hole(self, directory: array[int], index: int, end: int) -> int:
        """How many tables from one on follow each other in a hole of the file.

        Args:
            directory: entries.
            index: of the first.
            end: of those that are of interest.
        """
        place, step = directory[index], self.layout.table_sectors
        if not self.table_at(place):
            return 0
        _, until, data = next(self.file.runs(place << 9, self.file.size - (place << 9)))
        most = 0 if data else ((until >> 9) - place) // step
        return in_sequence(directory, index, step, min(end, index + most)) if most else 0

    def file_grew(self) -> None:
        """To where entries say that grains are: these can be true now. Nothing may be unsaved."""
        self._size = -(-self.file.size // 512)
        self.end = max(self.end, round_up(self._size, self.layout.grain))
        self.forget_all()

    def forget_all(self) -> None:
        """Drop every table; nothing may be unsaved."""
        self.tables.clear()
        self.damaged.clear()
        self.generation += 1

    # ---- lookup -----------------------------------------------------------------------------

    def run(self, at: int, count: int) -> tuple[int, int] | None:
        """The longest run of sectors that are stored in one way, within a table.

        Args:
            at: first sector, of the file's disk.
            count: at most so many.

        Returns:
            Where it is (a sector of the file, `HOLE`, `ZERO` or `DAMAGED`) and its sectors; None:
            the table would have to be waited for.

        Raises:
            ImageFormatError: the directory does not say where the table is.
        """
        index = at >> self.table_shift
        table = self.tables.get(index)
        if table is None:
            table = self.table_now(index)
            if table is None:
                return None
            if index in self.damaged:
                return self._run_of_damaged(table, at, count)
        if table is self.empty:
            return HOLE, min(count, ((index + 1) << self.table_shift) - at)
        return self._run_in(table, at, count)

    def _run_in(self, table: array[int], at: int, count: int) -> tuple[int, int]:
        grain, number = self.layout.grain, (at >> self.grain_shift) & self.entry_mask
        skip = at & self.grain_mask
        place, length = table[number], grain - skip
        step = grain if place > ZERO else 0
        expected, last = place + step, self.entry_mask
        while length < count and number < last and table[number + 1] == expected:
            number += 1
            expected += step
            length += grain
        if place > ZERO:
            place += skip
        return place, min(length, count)

    def _run_of_damaged(self, table: array[int], at: int, count: int) -> tuple[int, int]:
        """Of one grain at a time."""
        place = table[(at >> self.grain_shift) & self.entry_mask]
        skip = at & self.grain_mask
        length = min(self.layout.grain - skip, count)
        if not self.place_possible(place):
            return DAMAGED, length
        return (place + skip if place > ZERO else place), length
