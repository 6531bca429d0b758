"""Maps whose tables are read when they are needed: most formats'."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Generic, TypeVar

from tapcore.clusters.cache import Loaded, Read, TableCache
from tapcore.clusters.map import ClusterMap, WritableMap
from tapcore.clusters.runs import HOLE, DamagedTable, Run
from tapcore.clusters.tables import Table, count_from
from tapcore.errors import ImageFormatError
from tapcore.formats.tablevisits import EmptyTables, TableVisits

T = TypeVar("T", bound=Table)


class TableMap(ClusterMap, Generic[T]):
    """A map by tables, each of which maps `1 << table_shift` sectors.

    Attributes:
        tables: in memory.
        table_bytes: of a table in the file.
        no_table: what the directory has in place of a table that is not there.
        zeroes_say_nothing: what a table of zeroes would map is a hole; so one that lies in a hole
            of the file need not be read.
    """

    no_table: ClassVar[int] = 0
    zeroes_say_nothing: ClassVar[bool] = True
    tables: TableCache[T]
    table_bytes: int

    @abstractmethod
    def table_place(self, index: int) -> int:
        """Where a table lies in the file, bytes; 0: there is none, and what it would map is a hole.

        Raises:
            ImageFormatError: it cannot be where the image says.
        """

    @abstractmethod
    def read_table(self, index: int, read: Read) -> T | None:
        """A table that there is, by one of the file's ways; for `TableCache`."""

    @abstractmethod
    def run_in(self, table: T, sector: int, stop: int) -> Run:
        """As `run`, by the table that maps the sectors from one up to another."""

    def run(self, sector: int, stop: int) -> Run | None:
        """By the tables in memory, or in the page cache."""
        index = sector >> self.table_shift
        stop = min(stop, (index + 1) << self.table_shift)
        table = self.tables.young.get(index)
        if table is None:
            try:
                table = self.tables.get(index)
                if table is None:
                    if not self.table_place(index):
                        return Run(HOLE, sector, stop - sector)
                    table = self.tables.now(index)
            except ImageFormatError as exc:
                raise DamagedTable(exc.message, errno=exc.errno) from None
            if table is None:
                return None
        return self.run_in(table, sector, stop)

    def load(self, sector: int, then: Loaded) -> None:
        """By way of the cache, which reads each table once for all that wait."""
        self.tables.load(sector >> self.table_shift, then)

    # ---- waiting for tables -----------------------------------------------------------------

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """As for every map; tables that say nothing are passed over, and none is read for ever.

        Raises:
            ImageFormatError: also where one table is named too often.
            OSError: as the system says.
        """
        visits: TableVisits | None = None
        while sector < stop:
            index = sector >> self.table_shift
            end = min(stop, (index + 1) << self.table_shift)
            table = self.tables.young.get(index)
            if table is None:
                if empty := self.empty_tables(index, ((stop - 1) >> self.table_shift) + 1):
                    end = min(stop, (index + empty) << self.table_shift)
                    yield Run(HOLE, sector, end - sector)
                    sector = end
                    continue
                visits = visits or TableVisits(self.table_bytes)
                visits.visit(self.table_place(index))
                table = self.tables.wait(index)
            while sector < end:
                run = self.run_in(table, sector, end)
                yield run
                sector = run.end

    def empty_tables(self, index: int, stop: int) -> int:
        """How many tables from one on hold nothing, told without reading any.

        They are not there, or lie in a hole of the file where zeroes say nothing, and none of them
        is in memory.

        Args:
            index: of the first.
            stop: of those that are of interest.
        """
        holes = EmptyTables(self.file, self.table_bytes)
        directory, none, start = self.tables.directory, self.no_table, index
        while index < stop:
            if directory and (count := count_from(directory.entries, index, stop, none)):
                index += count
                continue
            if index in self.tables:
                break
            place = self.table_place(index)
            if place and not (self.zeroes_say_nothing and holes.holds(place)):
                break
            index += 1
        return index - start


class WritableTableMap(TableMap[T], WritableMap):
    """The same, of an image that is written.

    Attributes:
        zero_is_new: a table has as many entries as it maps clusters, and one that is zero says that
            a cluster is a hole without a place.
    """

    zero_is_new: bool = False

    def is_new(self, sector: int, stop: int) -> bool:
        """By entries of a table that is used a lot; where `zero_is_new` says so."""
        table = self.tables.young.get(sector >> self.table_shift)
        if table is None or not self.zero_is_new or not table.sound:
            return False
        entries, shift = table.entries, self.cluster_shift
        at, count = (sector >> shift) & (len(entries) - 1), (stop - sector) >> shift
        if count == 1:
            return not entries[at]
        return at + count <= len(entries) and not any(entries[at : at + count])

    @property
    def must_write_back(self) -> bool:
        """By the number of tables with changes."""
        tables = self.tables
        return len(tables.dirty) > tables.most // 2

    @property
    def full(self) -> bool:
        """By the same."""
        tables = self.tables
        return len(tables.dirty) >= tables.most
