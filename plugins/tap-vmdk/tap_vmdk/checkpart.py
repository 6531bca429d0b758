"""Checking the tables of one sparse file, and repairing them on the way."""

from __future__ import annotations

import os
from array import array

from tap_vmdk import sparse
from tap_vmdk.compressed import CompressedPart
from tap_vmdk.descriptor import MAX_DESCRIPTOR
from tap_vmdk.grains import HOLE, ZERO, raw32, round_up
from tap_vmdk.grainwrite import WritablePart
from tap_vmdk.layouts import with_footer
from tap_vmdk.signature import kind_of
from tap_vmdk.spacemap import GRAIN, METADATA, MisalignedError, SpaceMap
from tap_vmdk.sparse import GRAIN_MARKER, SparseHeader
from tap_vmdk.sparseparts import SparsePart
from tapcore import CheckResult

_MESSAGES = 20


def is_hosted(head: bytes) -> bool:
    """Whether a file is a hosted sparse file."""
    return kind_of(head) == "hosted"


class PartCheck:
    """One pass over a sparse file; nothing of it is in flight or unsaved.

    Args:
        part: the file.
        repair: "", "leaks" or "all"; the last two for a part that is written.
    """

    def __init__(self, part: SparsePart, repair: str = "") -> None:
        self._part = part
        self._map = part.map
        self._layout = part.map.layout
        self._file = part.map.file
        self._repair = repair
        self._compressed = isinstance(part, CompressedPart)
        head = self._file.read_metadata(0, sparse.HEADER_BYTES)
        self._header = SparseHeader.unpack(head) if is_hosted(head) else None
        marked = self._header is not None and self._header.flags & sparse.FLAG_MARKERS
        self._marker = 1 if marked else 0  # sectors before each piece of metadata
        self._sectors = -(-self._file.size // 512)
        self._space = SpaceMap(1)
        self.result = CheckResult()

    def run(self) -> CheckResult:
        """Go through everything; repairs what it was told to.

        Raises:
            OSError: as the system says.
        """
        try:
            unit = 1 if self._compressed else self._layout.grain
            return self._run(unit)
        except MisalignedError:
            return self._run(1)

    def _run(self, unit: int) -> CheckResult:
        self.result = CheckResult()
        self._space = SpaceMap(unit)
        self.result.total_clusters = -(-self._layout.capacity // self._layout.grain)
        self.result.image_end_offset = self._file.size
        self._metadata()
        for index in range(self._layout.tables):
            self._table(index)
        if self._header is not None:
            self._leaks()
        if self._repair:
            self._map.forget_all()
            if res := self._file.flush_blocking():
                raise OSError(-res, os.strerror(-res))
        return self.result

    def _corrupt(self, message: str) -> None:
        self.result.corruptions += 1
        if len(self.result.messages) < _MESSAGES:
            self.result.messages.append(message)

    @property
    def _fixing(self) -> bool:
        return self._repair == "all" and self._map.whole_directories

    # ---- metadata ---------------------------------------------------------------------------

    def _metadata(self) -> None:
        """Note where header, descriptor and directories lie."""
        use = self._space.use
        use(0, self._layout.first_grain, METADATA)
        if self._header is not None and self._header.descriptor_offset:
            size = min(self._header.descriptor_size, MAX_DESCRIPTOR // 512)
            use(self._header.descriptor_offset, size, METADATA)
        size = -(-self._layout.directory_bytes // 512)
        for offset in self._layout.directories:
            if 0 < offset <= self._file.size - self._layout.directory_bytes:
                use(offset // 512 - self._marker, size + self._marker, METADATA)
            else:
                self._corrupt(f"a grain directory lies outside the file (at {offset})")
        if self._header is not None and self._header.gd_offset == sparse.GD_AT_END:
            _, tail = with_footer(self._file, self._header)
            use(tail, 3, METADATA)

    # ---- tables -----------------------------------------------------------------------------

    def _table(self, index: int) -> None:
        """One table, and its copy."""
        primary = self._read(index, self._map.directory[index], "")
        if self._map.spare is None:
            if primary is not None:
                self._entries(index, primary, None)
            return
        spare = self._read(index, self._map.spare[index], "redundant ")
        before = (primary[:] if primary is not None else None, spare)
        if primary is None and spare is not None:
            primary = spare[:]
        if primary is None:
            self._save(index, before, None)
            return
        if spare is not None and spare != primary and before[0] is not None:
            self._corrupt(f"the two grain tables {index} disagree")
        elif spare is None and before[0] is not None and any(primary):
            self._corrupt(f"the redundant grain table {index} is missing")
        self._entries(index, primary, spare)
        self._save(index, before, primary)

    def _read(self, index: int, place: int, which: str) -> array[int] | None:
        """A table as it is in the file; None where there is none."""
        if not place:
            return None
        if not self._map.table_at(place):
            self._corrupt(f"entry {index} of the {which}grain directory points past the file")
            return None
        size = self._layout.table_bytes
        self._space.use(place - self._marker, -(-size // 512) + self._marker, METADATA)
        return self._layout.decode_table(self._file.read_metadata(place << 9, size))

    def _entries(self, index: int, table: array[int], spare: array[int] | None) -> None:
        """Check a table's entries, and mend them in memory."""
        if not any(table):
            return
        first = index << self._map.table_shift
        for number, place in enumerate(table):
            if place <= ZERO and self._possible(place):
                continue
            at = first + (number << self._map.grain_shift)
            if at >= self._layout.capacity:
                self._corrupt(f"sector {at} is past the disk's end, and has a grain")
                table[number] = HOLE
                continue
            if not self._possible(place):
                self._corrupt(f"the grain of sector {at} lies outside the file (at {place})")
                other = spare[number] if spare is not None else HOLE
                place = table[number] = other if self._possible(other) else HOLE
                if place <= ZERO:
                    continue
            self._grain(at, number, table)

    def _possible(self, place: int) -> bool:
        """As the grain map judges, but with what the file is now."""
        if place <= ZERO:
            return place == HOLE or self._layout.zeroes
        end = self._sectors
        if self._layout.whole:
            end = round_up(end, self._layout.grain) - self._layout.grain + 1
        return self._layout.first_grain <= place < end

    def _grain(self, at: int, number: int, table: array[int]) -> None:
        place, length = table[number], self._layout.grain
        if self._compressed:
            self.result.compressed_clusters += 1
            length = self._stored_length(at, place)
        self.result.allocated_clusters += 1
        if self._space.use(place, length, GRAIN):
            return
        self._corrupt(f"the grain of sector {at} (at {place}) overlaps something else")
        if self._fixing and isinstance(self._part, WritablePart):
            content = self._file.read_metadata(place << 9, length << 9)
            table[number] = place = self._part.take(length)
            self._file.write_metadata(place << 9, content)
            self._space.use(place, length, GRAIN)

    def _stored_length(self, at: int, place: int) -> int:
        """Sectors that a compressed grain takes; damage is counted."""
        if not self._marker:
            return 1
        sector, size = GRAIN_MARKER.unpack(self._file.read_metadata(place << 9, GRAIN_MARKER.size))
        length: int = -(-(GRAIN_MARKER.size + size) // 512)
        if sector != at or not 0 < size <= 2 * self._part.cluster:
            self._corrupt(f"the grain of sector {at} (at {place}) has a damaged marker")
            return 1
        if place + length > self._sectors:
            self._corrupt(f"the grain of sector {at} (at {place}) is cut off")
        return length

    def _save(
        self,
        index: int,
        before: tuple[array[int] | None, array[int] | None],
        table: array[int] | None,
    ) -> None:
        """Write a mended table into both places; what it points to first."""
        if not self._fixing or not isinstance(self._part, WritablePart):
            return
        directories = (self._map.directory, self._map.spare)
        for offset, directory, old in zip(
            self._layout.directories, directories, before, strict=True
        ):
            assert directory is not None
            if table is None:
                if directory[index]:
                    directory[index] = 0
                    self._file.write_metadata(offset + 4 * index, bytes(4))
                continue
            if old == table:
                continue
            if res := self._file.flush_blocking():
                raise OSError(-res, os.strerror(-res))
            if old is None:
                directory[index] = self._part.take(
                    round_up(-(-self._layout.table_bytes // 512), self._layout.grain)
                )
                self._space.use(directory[index], self._layout.table_bytes // 512, METADATA)
            self._file.write_metadata(directory[index] << 9, raw32(table))
            if old is None:
                entry = directory[index].to_bytes(4, "little")
                self._file.write_metadata(offset + 4 * index, entry)

    # ---- leaks ------------------------------------------------------------------------------

    def _leaks(self) -> None:
        """Space that is taken from the file system, and that nothing uses."""
        unit = self._space.unit << 9
        start = max(self._layout.first_grain, min(self._header_end(), self._sectors)) << 9
        leaked = 0
        for first, end in self._space.unused(-(-start // unit), -(-self._file.size // unit)):
            for begin, stop, data in self._file.runs(first * unit, (end - first) * unit):
                if data and begin < self._file.size:
                    leaked += stop - begin
                    if self._repair and not self._compressed:
                        self._file.discard_blocking(begin, stop - begin)
        self.result.leaks = -(-leaked // (self._layout.grain << 9))
        end = self._space.end * unit
        if self._repair and not self._compressed and start <= end < self._file.size:
            self._file.resize(end)
            self._map.end = self._space.end * self._space.unit

    def _header_end(self) -> int:
        return self._header.overhead if self._header is not None else 0
