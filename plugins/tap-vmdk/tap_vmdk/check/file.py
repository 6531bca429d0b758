"""Checking the tables of one sparse file, and planning what would mend them."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from tap_vmdk.check.deadspace import dead_sectors, footer_pieces
from tap_vmdk.check.plan import RepairPlan
from tap_vmdk.check.space import MisalignedError, SpaceMap
from tap_vmdk.signature import kind_of
from tap_vmdk.sparse.directories import without_tables
from tap_vmdk.sparse.entries import HOLE, LAST_SECTOR, ZERO
from tap_vmdk.sparse.grainmap import GrainMap
from tap_vmdk.sparse.header import FLAG_MARKERS, HEADER_BYTES, SparseHeader
from tap_vmdk.sparse.markers import GRAIN_MARKER
from tap_vmdk.sparse.missing import unnamed_data
from tapcore import CheckResult

_MESSAGES = 20


class FileCheck:
    """One look at a sparse file; nothing of it is in flight or unsaved.

    Args:
        map: of its grains.
        has_parent: what is a hole in it reads as something else than zeroes.

    Attributes:
        result: what was found.
        plan: what would mend it.
        hides: what was lost, or only a redundant table has: it may need what nothing refers to.
    """

    def __init__(self, map: GrainMap, *, has_parent: bool = False) -> None:
        self._map = map
        self._layout = map.layout
        self._file = map.file
        self._has_parent = has_parent
        self._compressed = not map.layout.whole
        head = self._file.read_metadata(0, HEADER_BYTES)
        self._header = SparseHeader.unpack(head) if kind_of(head) == "hosted" else None
        marked = self._header is not None and self._header.flags & FLAG_MARKERS
        self._marker = 1 if marked and self._compressed else 0  # sectors before each table
        self._sectors = -(-self._file.size // 512)
        self._places = self._map.watch_metadata()
        self._shared = sorted(index for _, index in self._places.shared)
        self._reset(1)

    def _reset(self, unit: int) -> None:
        self.result = CheckResult()
        self.hides = 0
        self._space = SpaceMap(unit)
        self._clashes = SpaceMap(1)
        self._uneven: list[int] = []
        used = max(self._map.end, self._layout.first_grain if self._layout.whole else 0)
        self.plan = RepairPlan.behind(self._file.size, self._layout.grain, min(used, LAST_SECTOR))

    def run(self) -> CheckResult:
        """Go through everything.

        Raises:
            OSError: as the system says.
        """
        try:
            return self._run(1 if self._compressed else self._layout.grain)
        except MisalignedError:
            return self._run(1)

    def _run(self, unit: int) -> CheckResult:
        self._reset(unit)
        self.result.total_clusters = -(-self._layout.capacity // self._layout.grain)
        self.result.image_end_offset = self._file.size
        self._metadata()
        index = 0
        while index < self._layout.tables:
            count = self._empty_tables(index)
            if not count:
                self._table(index)
            index += count or 1
        for index in self._uneven:
            self._redundant(index)
        self.result.leaks = -(-self._leaked() // (self._layout.grain << 9))
        return self.result

    def _corrupt(self, message: str) -> None:
        self.result.corruptions += 1
        if len(self.result.messages) < _MESSAGES:
            self.result.messages.append(message)

    # ---- metadata ---------------------------------------------------------------------------

    def _metadata(self) -> None:
        """Note where header, descriptor, directories and tables lie."""
        for start, end in self._places.ranges:
            if start < self._sectors:
                self._space.use(start, min(end, self._sectors) - start)
        for which, offset in enumerate(self._layout.directories):
            start, end = self._layout.directory_range(which)
            fault = self._map.faults[which]
            if not fault:
                self._space.use(start - self._marker, end - start + self._marker)
                continue
            self.plan.rebuild = True
            self._corrupt(f"a grain directory {fault} (at {offset})")
        if lost := unnamed_data(self._map):
            self.hides += 1
            self.result.messages.append(lost)
        if self._header is not None and self._compressed:
            for start, count in footer_pieces(self._file, self._header, self._layout):
                self._space.use(start, count)

    def _empty_tables(self, index: int) -> int:
        """How many tables from one on, and their copies, are known to be empty and in order."""
        end = self._layout.tables
        if self._shared:
            following = bisect_left(self._shared, index)
            end = self._shared[following] if following < len(self._shared) else end
        count = self._map.empty_tables(index, end) if index < end else 0
        spare = self._map.spare
        if not count or spare is None:
            return count
        none = without_tables(spare, index, index + count)
        if not self._map.directory[index]:
            return none or self._map.tables_in_hole(spare, index, index + count)
        if none:
            self.result.corruptions += none - 1
            self._corrupt(f"the redundant grain tables {index} to {index + none - 1} are missing")
            self.plan.missing.append((index, none))
            return none
        return self._map.tables_in_hole(spare, index, index + count)

    # ---- tables -----------------------------------------------------------------------------

    def _raw(self, place: int) -> bytes | None:
        """A table as it is in the file; None where there can be none."""
        if not self._map.table_at(place):
            return None
        return self._file.read_metadata(place << 9, self._layout.table_bytes)

    def _no_table(self, place: int) -> str:
        """Where an entry of a directory points, if not at what can be a table."""
        inside = place + self._layout.table_sectors <= self._sectors
        return "at the header or the descriptor" if inside else "past the file"

    def _table(self, index: int) -> None:
        """One table, and whether its copy is one."""
        place = self._map.directory[index]
        spare = 0 if self._map.spare is None else self._map.spare[index]
        first, other = self._raw(place), self._raw(spare)
        changed = False
        if place and self._marker:
            self._space.use(place - 1, 1)
        if place and first is None:
            self._corrupt(f"entry {index} of the grain directory points {self._no_table(place)}")
            self.hides += other is None
            changed = True
        elif (0, index) in self._places.shared:
            self._corrupt(f"the grain table {index} lies over other metadata")
            self.hides += 1
            changed = True
        raw = first if first is not None or not place else other
        table = None if raw is None else self._layout.decode_table(raw)
        if table is not None and any(table):
            differs = other is not None and other != raw
            copy = self._layout.decode_table(other) if differs and other is not None else None
            if first is None or self._map.only_spare:
                copy = self._map.empty  # what cannot be true of a copy is nothing, not even a grain
            changed = self._entries(index, table, copy) or changed
        if changed:
            self.plan.set_table(0, index, table)
        if self._map.spare is not None and (
            changed or first != other or (1, index) in self._places.shared
        ):
            self._uneven.append(index)

    def _entries(self, index: int, table: array[int], other: array[int] | None) -> bool:
        """Check a table's entries, and mend them in memory; returns whether that was needed."""
        first = index << self._map.table_shift
        end = min(len(table), -((first - self._layout.capacity) >> self._map.grain_shift))
        if any(table[end:]):
            self._past_end(table[end:])
        if self._compressed:
            self._compressed_entries(first, table[:end])
            return False
        changed, number = False, 0
        while number < end:
            place = table[number]
            if place <= ZERO and self._possible(place):
                number += 1
                continue
            count = self._run_of(table, number, end)
            length = count * self._layout.grain
            at = first + (number << self._map.grain_shift)
            if self._fits(at, place, count) and not self._space.used(place, length):
                self._space.use(place, length)
                self.result.allocated_clusters += count
                number += count
                continue
            table[number] = self._mended(at, place, None if other is None else other[number])
            changed = changed or table[number] != place
            number += 1
        return changed

    def _past_end(self, entries: array[int]) -> None:
        """Grains that the disk is too short for: either is damaged, so they are left alone."""
        grains = sum(map(bool, entries))
        self._corrupt(f"{grains} grains lie past the disk's end; they are kept")
        self.hides += grains
        for place in entries:
            if place > ZERO and self._possible(place):
                self._space.use(place, 1 if self._compressed else self._layout.grain)

    def _run_of(self, table: array[int], number: int, end: int) -> int:
        """How many grains from one on lie behind each other."""
        expected, first = table[number], number
        while number < end and table[number] == expected:
            number += 1
            expected += self._layout.grain
        return number - first

    def _possible(self, place: int) -> bool:
        """As the grain map judges, but with what the file is now."""
        if place <= ZERO:
            return place == HOLE or self._layout.zeroes
        return self._layout.first_grain <= place < self._sectors

    def _fits(self, at: int, place: int, count: int = 1) -> bool:
        """Whether grains in a row are possible, and all that the disk has of them is there."""
        needed = min(count * self._layout.grain, self._layout.capacity - at) if place > ZERO else 0
        return self._possible(place) and place + needed <= self._file.size // 512

    def _mended(self, at: int, place: int, other: int | None) -> int:
        """What the entry of a single grain ought to be.

        Args:
            at: its first sector, of the file's disk.
            place: what it is.
            other: what the redundant table has, where that differs.
        """
        grain = self._layout.grain
        if not self._fits(at, place):
            cut = self._possible(place)
            what = "is cut off" if cut else "lies outside the file"
            self._corrupt(f"the grain of sector {at} {what} (at {place})")
            if other is None or not self._fits(at, other) or (cut and other <= ZERO):
                return self._replaced(place)
            self.hides += other == HOLE
            place = other
            if place <= ZERO:
                return place
        self.result.allocated_clusters += 1
        if not self._space.used(place, grain):
            self._space.use(place, grain)
            return place
        self._corrupt(f"the grain of sector {at} (at {place}) overlaps something else")
        self.hides += 1
        self._clashes.use(place, grain)
        return self.plan.take(place, grain)

    def _replaced(self, place: int) -> int:
        """For an entry that cannot be true: what lies where it points, be it a part of a grain."""
        self.hides += 1
        if place == ZERO:  # it may have meant zeroes before a flag was lost
            return place
        if place < self._sectors:
            self._space.use(place, min(self._layout.grain, self._sectors - place))
            return self.plan.take(place, self._layout.grain)
        if not self._has_parent:
            return HOLE
        return ZERO if self._layout.zeroes else self.plan.take(-1, self._layout.grain)

    # ---- compressed grains ------------------------------------------------------------------

    def _compressed_entries(self, first: int, table: array[int]) -> None:
        for number, place in enumerate(table):
            if place <= ZERO and self._possible(place):
                continue
            at = first + (number << self._map.grain_shift)
            if not self._possible(place):
                self._corrupt(f"the grain of sector {at} lies outside the file (at {place})")
                continue
            self.result.compressed_clusters += 1
            self.result.allocated_clusters += 1
            length = self._stored_length(at, place)
            if self._space.used(place, length):
                self._corrupt(f"the grain of sector {at} (at {place}) overlaps something else")
            self._space.use(place, length)

    def _stored_length(self, at: int, place: int) -> int:
        """Sectors that a compressed grain takes; damage is counted."""
        if not self._marker:
            return 1
        sector, size = GRAIN_MARKER.unpack(self._file.read_metadata(place << 9, GRAIN_MARKER.size))
        length: int = -(-(GRAIN_MARKER.size + size) // 512)
        if sector != at or not 0 < size <= self._layout.grain << 10:
            self._corrupt(f"the grain of sector {at} (at {place}) has a damaged marker")
            return 1
        if place + length > self._sectors:
            self._corrupt(f"the grain of sector {at} (at {place}) is cut off")
        return length

    # ---- the redundant tables ---------------------------------------------------------------

    def _redundant(self, index: int) -> None:
        """A table whose copy is another; what all first tables refer to is known by now."""
        spare = self._map.spare
        assert spare is not None
        place, other_place = self._map.directory[index], spare[index]
        raw, other_raw = self._raw(place), self._raw(other_place)
        table = None if raw is None else self._layout.decode_table(raw)
        if (0, index) in self.plan.tables:
            table = self.plan.tables[0, index]
        other = None if other_raw is None else self._layout.decode_table(other_raw)
        if other_place and other is None:
            said = self._no_table(other_place)
            self._corrupt(f"entry {index} of the redundant grain directory points {said}")
        elif (1, index) in self._places.shared:
            self._corrupt(f"the redundant grain table {index} lies over other metadata")
            self.hides += 1
            other = None
        elif place and not other_place:
            self._corrupt(f"the redundant grain table {index} is missing")
        elif raw is not None and raw != other_raw:
            self._corrupt(f"the two grain tables {index} disagree")
        elif not place and other is not None and any(other):
            self._corrupt(f"the grain table {index} is missing, and a redundant one is there")
        wanted = self._with_hidden(table, other, other_place)
        if wanted != other or (other_place and other is None):
            self.plan.set_table(1, index, wanted)

    def _with_hidden(
        self, table: array[int] | None, other: array[int] | None, place: int
    ) -> array[int] | None:
        """What a redundant table is to be: the first one, but for grains that only it knows.

        Which of the two is right there cannot be told, so that both stay as they are. What lies
        where a grain does, or has entries that cannot be true, is no table and knows nothing.
        """
        if other is None or table == other or not all(map(self._possible, other)):
            return table
        if self._clashes.used(place, self._layout.table_sectors):
            return table
        wanted = self._map.empty[:] if table is None else table[:]
        hidden = 0
        for number, where in enumerate(other):
            if where <= ZERO or where == wanted[number]:
                continue
            if where % self._space.unit or self._space.used(where, self._layout.grain):
                continue
            wanted[number] = where
            hidden += 1
        for where in wanted if hidden else ():
            if where > ZERO:
                self._space.use(where, self._layout.grain)
        self.hides += hidden
        if table is None and not hidden:
            return other if not any(other) else None
        return wanted

    # ---- leaks ------------------------------------------------------------------------------

    def _leaked(self, free: bool = False) -> int:
        """Bytes taken from the file system that nothing uses; given back if wanted."""
        if self._header is None or (self._compressed and not self._marker):
            return 0  # how long a compressed grain is, its marker says
        unit, start = self._space.unit << 9, self._past_metadata(self._header)
        leaked = 0
        for first, end in self._space.unused(-(-start // unit), -(-self._file.size // unit)):
            if self._compressed:
                leaked += dead_sectors(self._file, first, end, self._layout.grain << 9) << 9
                continue
            for begin, stop, data in self._file.runs(first * unit, (end - first) * unit):
                if data and begin < self._file.size:
                    leaked += stop - begin
                    if free:
                        self._file.discard_blocking(begin, stop - begin)
        return leaked

    def _past_metadata(self, header: SparseHeader) -> int:
        return max(self._layout.first_grain, min(header.overhead, self._sectors)) << 9

    def give_back(self) -> None:
        """Free what nothing uses, of a file that was found to be in order.

        Raises:
            OSError: as the system says.
        """
        assert self._header is not None
        self._leaked(free=True)
        start = self._past_metadata(self._header)
        end = self._space.end * self._space.unit
        if start <= end << 9 < self._file.size:
            self._file.resize(end << 9)
            self._map.end = end
