"""Where the grains of a sparse file lie: its grain directories, and grain tables kept in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import ClassVar, Final

from tap_vmdk.sparse.directories import in_sequence, read_directories, without_tables
from tap_vmdk.sparse.entries import HOLE, ZERO
from tap_vmdk.sparse.graintable import Directory, GrainTable
from tap_vmdk.sparse.layout import Layout
from tap_vmdk.sparse.metadata import MetadataPlaces
from tap_vmdk.sparse.sizes import round_up
from tapcore import DiskDriver, ImageFile, ImageFormatError, clusters
from tapcore.clusters import DATA, PACKED, DamagedTable, MissingContent, Read, Run, TableCache

DAMAGED_TABLE: Final = "a grain table is damaged; check --repair all mends it"
MISSING: Final = -3
"""The token of a run that stands for grains that are missing."""
DAMAGED_DIRECTORY: Final = "a grain directory is damaged; check --repair all mends it"


class GrainMap(clusters.TableMap[GrainTable]):
    """The map of one sparse file of plain grains.

    Args:
        dd: the disk that it is a part of.
        file: open.
        layout: of it.

    Attributes:
        dd: as given.
        layout: as given.
        faults: of each directory, what is wrong with it: it must lie in the file, and over nothing
            else.
        whole_directories: all are.
        only_spare: the directory in use is the redundant one.
        directory: sectors of the tables; 0 for a table that is not there.
        spare: the same of the redundant directory, where there is one and it is sound too.
        places: of all metadata, where entries that point there must not be written through.
        empty: the entries of a table that holds nothing but holes; not to be changed.
        end: sectors of the file that are used; new grains go behind it.
        sure: tables that were whole when they began to be changed: their entries are ours.
        why_missing: what is wrong with all entries that cannot be true, where that is known.
    """

    shows_holes: ClassVar[bool] = True
    whole_clusters: ClassVar[bool] = True
    why_missing: ClassVar[str] = ""

    def __init__(self, dd: DiskDriver, file: ImageFile, layout: Layout) -> None:
        super().__init__(file, layout.capacity, layout.grain << 9)
        self.dd = dd
        self.layout = layout
        self.grain_shift = self.cluster_shift
        self.grain_mask = layout.grain - 1
        self.entry_mask = layout.entries - 1
        self.table_shift = self.grain_shift + layout.entries.bit_length() - 1
        self.table_bytes = layout.table_bytes
        self.sure: set[int] = set()
        self.empty = layout.decode_table(bytes(layout.table_bytes))
        self._size = -(-file.size // 512)  # sectors, as opened
        self._whole = file.size // 512
        self.end = round_up(max(self._size, layout.first_grain), layout.grain)
        self.places: MetadataPlaces | None = None
        self._read_directories()
        named = Directory(layout.directories, self.directory, self.spare)
        budget = dd.options.metadata_cache
        self.tables = TableCache(file, self.read_table, layout.table_bytes, budget, named)
        self._young = self.tables.young

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

    def table_place(self, index: int) -> int:
        """By the directory, or by the redundant one where that cannot be."""
        place = self.directory[index]
        if place and not self.table_at(place):
            place = 0 if self.spare is None else self.spare[index]
            if not self.table_at(place):
                raise DamagedTable(f"its grain directory has a damaged entry {index}")
        return place << 9

    def read_table(self, index: int, read: Read) -> GrainTable | None:
        """See `TableMap`; the redundant table says what cannot be true in the first one."""
        place = self.table_place(index)
        raw = read(place, self.table_bytes)
        if raw is None:
            return None
        if place >> 9 == self.directory[index] and self.spare is not None:
            if self.places is not None and not self._have_spare(index, read):
                return None
            if not self._possible(index, entries := self.layout.decode_table(raw)):
                self._mend(index, entries)
                return self._table(index, place, entries)
        return self._table(index, place, self.layout.decode_table(raw))

    def _table(self, index: int, place: int, entries: array[int]) -> GrainTable:
        sound = self._possible(index, entries) and self._may_be_written(entries)
        table = GrainTable(index, place, entries, sound=sound)
        if index in self.sure and self.spare is not None:
            table.copy = self.spare[index] << 9
        return table

    def _have_spare(self, index: int, read: Read) -> bool:
        """Bring the redundant table into the page cache: who writes will compare the two."""
        assert self.spare is not None
        place = self.spare[index]
        return not self.table_at(place) or read(place << 9, self.table_bytes) is not None

    def _mend(self, index: int, table: array[int]) -> None:
        """Take from the redundant table, read at once, what cannot be true in the first one."""
        assert self.spare is not None
        if not self.table_at(self.spare[index]):
            return
        raw = self.file.read_metadata(self.spare[index] << 9, self.table_bytes)
        other = self.layout.decode_table(raw)
        for number, place in enumerate(table):
            if not self.place_possible(place) and self.place_possible(other[number]):
                table[number] = other[number]

    def place_possible(self, place: int) -> bool:
        """Whether an entry of the file as it was opened can be true."""
        if place <= ZERO:
            return place == HOLE or self.layout.zeroes
        return self.layout.first_grain <= place < self._size

    def holds(self, sectors: int, place: int) -> bool:
        """Whether so many sectors of a grain lie in the file as it was opened.

        Of a compressed grain, whether it begins there.
        """
        return place + sectors <= self._whole if self.layout.whole else place < self._size

    def _possible(self, index: int, table: array[int]) -> bool:
        """Whether all entries of a table can be true; those that we have changed are ours."""
        if index in self.sure:
            return True
        if max(table) >= self._size:
            return False
        first = max(self.layout.first_grain, ZERO + 1)
        least = min(filter(None, table), default=first)
        if least == ZERO and self.layout.zeroes:
            least = min(filter(ZERO.__lt__, table), default=first)
        return least >= first

    def _may_be_written(self, table: array[int]) -> bool:
        """Whether no entry of a table points at metadata; asked only where somebody writes."""
        return self.places is None or not self.places.touched_by(table, self.layout.grain)

    def empty_tables(self, index: int, end: int) -> int:
        """How many tables from one on hold nothing but holes, told without reading any.

        They are not there, or lie in a hole of the file, and none of them is in memory.

        Args:
            index: of the first.
            end: of those that are of interest.
        """
        count = without_tables(self.directory, index, end)
        if not count:
            count = self.tables_in_hole(self.directory, index, end)
        return self.tables.unchanged_until(index, index + count) - index

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
        self._whole = self.file.size // 512
        self.end = max(self.end, round_up(self._size, self.layout.grain))
        self.tables.forget()

    # ---- lookup -----------------------------------------------------------------------------

    def place(self, sector: int, nb_sectors: int) -> int:
        """Of a part of one grain, by a table that is in memory and sound."""
        table = self._young.get(sector >> self.table_shift)
        skip = sector & self.grain_mask
        if table is None or not table.sound or skip + nb_sectors > self.grain_mask + 1:
            return clusters.ASK
        place = table.entries[(sector >> self.grain_shift) & self.entry_mask]
        if place > ZERO:
            return (place + skip) << 9
        return clusters.ASK if place else clusters.NOWHERE

    def run_in(self, table: GrainTable, sector: int, stop: int) -> Run:
        """Of a table that is not sound, one grain at a time."""
        number, skip = (sector >> self.grain_shift) & self.entry_mask, sector & self.grain_mask
        place, grain = table.entries[number], self.layout.grain
        if not table.sound and not self.place_possible(place):
            raise self._damage(place)
        length, wanted = grain - skip, stop - sector
        if wanted > length and table.sound:
            length = (self._grains_of_run(table.entries, number, wanted) * grain) - skip
        length = min(length, wanted)
        if place > ZERO:
            return self._stored(place, sector, length)
        return Run(clusters.ZERO if place else clusters.HOLE, sector, length)

    def _grains_of_run(self, entries: array[int], number: int, sectors: int) -> int:
        """How many grains from one on are stored in one way, or a few more than are wanted."""
        end = min(number + (sectors >> self.grain_shift) + 2, len(entries))
        place = entries[number]
        if place == HOLE:
            return without_tables(entries, number, end)
        step = self.layout.grain if place > ZERO else 0
        first = number
        while number < end and entries[number] == place:
            number += 1
            place += step
        return number - first

    def _stored(self, place: int, sector: int, length: int) -> Run:
        return Run(DATA, sector, length, (place + (sector & self.grain_mask)) << 9)

    def _damage(self, place: int) -> ImageFormatError:
        """What is wrong with an entry that cannot be true."""
        if self.why_missing:
            return MissingContent(self.why_missing)
        if place < self.layout.first_grain:
            return ImageFormatError(f"has an impossible entry ({place}) in a grain table")
        text = f"its grain, at sector {place} of the file, lies past the end of the file"
        return MissingContent(text)

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """As for every map; what is damaged counts as compressed: who reads it is told the rest."""
        while sector < stop:
            try:
                for run in super().runs(sector, stop):
                    yield run
                    sector = run.end
            except ImageFormatError as exc:
                shift = self.table_shift if isinstance(exc, DamagedTable) else self.grain_shift
                end = min(((sector >> shift) + 1) << shift, stop)
                missing = isinstance(exc, MissingContent) or self.why_missing
                yield Run(PACKED, sector, end - sector, MISSING if missing else clusters.NOWHERE)
                sector = end

    def missing(self, run: Run) -> bool:
        """As `runs` has found."""
        return run.where == MISSING

    def located(self, reason: str) -> str:
        """With the file, where that is not the disk's own."""
        path = self.file.path
        return reason if path == self.dd.name else f"its extent {path}: {reason}"
