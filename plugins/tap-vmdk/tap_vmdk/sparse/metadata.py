"""Where the metadata of a sparse file lies, and what of it lies where something else does.

Nothing may be written through an entry that points here, nor into a table that lies over another.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice

from tap_vmdk.sparse.directories import in_sequence, without_tables
from tap_vmdk.sparse.layout import Reserved

_LOW = (1 << 64) - 1


class MetadataPlaces:
    """Of one file; places are sectors of it.

    Args:
        reserved: header, descriptor and directories.
        directories: of each, the places of its tables, 0 for none.
        table_sectors: length of a table.
        end: of the file; tables that reach past it count for nothing.

    Attributes:
        shared: tables that lie where other metadata does, as (directory, number).
    """

    def __init__(
        self,
        reserved: Iterable[Reserved],
        directories: Iterable[array[int]],
        table_sectors: int,
        *,
        end: int,
    ) -> None:
        self.shared: set[tuple[int, int]] = set()
        self._starts = array("Q")
        self._ends = array("Q")
        self._size = table_sectors
        self._end = end - table_sectors
        fixed, tables = sorted(reserved), list(directories)
        runs = [start << 64 | end for start, end in fixed]  # a number takes less than a pair
        for directory in tables:
            runs += (start << 64 | end for start, end in self._runs(directory))
        runs.sort()
        if all((a & _LOW) <= b >> 64 for a, b in zip(runs, islice(runs, 1, None), strict=False)):
            self._join((run >> 64, run & _LOW) for run in runs)
        else:
            self._sweep(fixed, tables)

    def _runs(self, directory: array[int]) -> Iterator[Reserved]:
        """Where the tables of a directory lie, those that follow each other as one."""
        index, count, step = 0, len(directory), self._size
        while index < count:
            place = directory[index]
            if not 0 < place <= self._end:
                index += without_tables(directory, index, count) or 1
                continue
            length = in_sequence(directory, index, step, count)
            length = min(length, (self._end - place) // step + 1)
            yield place, place + length * step
            index += length

    def _join(self, runs: Iterable[Reserved]) -> None:
        for start, end in runs:
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def _sweep(self, fixed: list[Reserved], directories: list[array[int]]) -> None:
        """Some lie over others: look at each table."""
        packed = [start << 40 | 1 << 39 | number for number, (start, _) in enumerate(fixed)]
        for which, directory in enumerate(directories):
            packed += [
                place << 40 | which << 38 | index
                for index, place in enumerate(directory)
                if 0 < place <= self._end
            ]
        packed.sort()
        self._join(self._swept(packed, fixed))

    def _swept(self, packed: list[int], fixed: list[Reserved]) -> Iterator[Reserved]:
        furthest, holder = 0, 0
        for item in packed:
            start = item >> 40
            end = fixed[item & 0xFFFFFFFF][1] if item >> 39 & 1 else start + self._size
            if start < furthest:
                self._share(item)
                self._share(holder)
            if end > furthest:
                furthest, holder = end, item
            yield start, end

    def _share(self, item: int) -> None:
        if not item >> 39 & 1:
            self.shared.add((item >> 38 & 1, item & 0xFFFFFFFF))

    def touches(self, sector: int, sectors: int) -> bool:
        """Whether some metadata lies in a run of sectors."""
        number = bisect_right(self._starts, sector + sectors - 1) - 1
        return number >= 0 and self._ends[number] > sector

    def touched_by(self, table: Iterable[int], grain: int) -> bool:
        """Whether a grain that a table names lies over metadata.

        Args:
            table: entries; what is not the place of a grain is passed over.
            grain: sectors.
        """
        last = self._ends[-1] if self._ends else 0
        if all(place >= last for place in table if place > 1):
            return False
        return any(place > 1 and self.touches(place, grain) for place in table)

    @property
    def ranges(self) -> Iterator[Reserved]:
        """All of it, in order and apart."""
        return zip(self._starts, self._ends, strict=True)


def header_ranges(descriptor_offset: int, descriptor_size: int) -> tuple[Reserved, ...]:
    """Header and descriptor of a hosted file, in sectors.

    Args:
        descriptor_offset: where it begins; 0 for none.
        descriptor_size: as the header has it.
    """
    if not descriptor_offset:
        return ((0, 1),)
    most = sys.maxsize >> 10
    start = min(descriptor_offset, most)
    return (0, 1), (start, start + min(descriptor_size, 2048))
