"""A stream whose end is not there: its grains are looked for.

A stream tells at its end where all is. Where that is cut off, its grains are found all the same:
they follow each other with their markers.
"""

from __future__ import annotations

import logging
from array import array
from typing import ClassVar, Final

from tap_vmdk.sparse.compressed import CompressedMap
from tap_vmdk.sparse.entries import HOLE
from tap_vmdk.sparse.graintable import GrainTable
from tap_vmdk.sparse.header import FLAG_REDUNDANT, SparseHeader
from tap_vmdk.sparse.kinds import hosted_layout
from tap_vmdk.sparse.markers import (
    GRAIN_MARKER,
    MARKER,
    MARKER_DIRECTORY,
    MARKER_PROGRESS,
    MARKER_TABLE,
)
from tapcore import DiskDriver, ImageFile, ImageFormatError
from tapcore.clusters import Read

log = logging.getLogger(__name__)

_UNKNOWN: Final = (1 << 32) - 1
"""In place of the entry of a grain of which nobody knows whether there was one."""

NOT_FOUND: Final = "its grain is not in what is left of the stream"


def map_without_footer(dd: DiskDriver, file: ImageFile, header: SparseHeader) -> CompressedMap:
    """Of a stream whose end is not there.

    Args:
        dd: the disk that it is a part of.
        file: open.
        header: of it; its grains are compressed, and have markers.

    Raises:
        ImageFormatError: the directory that was found makes no sense.
        OSError: as the system says.
    """
    scan = _Scan(file, header)
    scan.run()
    if not scan.directory:
        return _ScannedMap(dd, file, header, scan)
    if scan.goes_on:
        log.warning(
            "%s: was changed after it was written, and the end of that is cut off: "
            "it is read as it was before",
            file.path,
        )
    found = header._replace(gd_offset=scan.directory, flags=header.flags & ~FLAG_REDUNDANT)
    return CompressedMap(dd, file, hosted_layout(found))


class _Scan:
    """A walk from marker to marker, as long as they make sense.

    Attributes:
        tables: of the grains found, by number.
        known: sectors of the disk, from its start, of which the grains are all found.
        directory: the sector of the last grain directory; 0 where none was found.
        goes_on: there is something behind that.
    """

    def __init__(self, file: ImageFile, header: SparseHeader) -> None:
        self.tables: dict[int, array[int]] = {}
        self.known = 0
        self.directory = 0
        self.goes_on = False
        self._file = file
        self._header = header
        self._in_order = True
        self._next = 0

    def run(self) -> None:
        """Look at all of the file."""
        size, step = MARKER.size, self._header.overhead
        at = max(step, 1)
        while step and (at << 9) + size <= self._file.size:
            value, length, kind = MARKER.unpack(self._file.read_metadata(at << 9, size))
            step = self._grain(at, value, length) if length else self._metadata(at, value, kind)
            at += step
        self.known = self._next if self._in_order else 0

    def _grain(self, at: int, sector: int, length: int) -> int:
        """Note a grain; returns the sectors that it takes, 0 where it cannot be one."""
        header = self._header
        end = (at << 9) + GRAIN_MARKER.size + length
        if sector % header.grain or sector >= header.capacity or end > self._file.size:
            return 0
        if length > header.grain << 10:
            return 0
        self.goes_on = self.directory > 0
        self._in_order &= sector >= self._next
        self._next = sector + header.grain
        index, number = divmod(sector // header.grain, header.entries)
        if index not in self.tables:
            self.tables[index] = array("I", bytes(4 * header.entries))
        self.tables[index][number] = at
        return -(-end // 512) - at

    def _metadata(self, at: int, sectors: int, kind: int) -> int:
        """Note a directory; returns the sectors that are taken, 0 where the stream ends."""
        header = self._header
        if kind == MARKER_PROGRESS:
            return 1
        if kind == MARKER_TABLE and sectors == header.table_sectors:
            return 1 + sectors
        if kind != MARKER_DIRECTORY or sectors != header.directory_sectors:
            return 0
        if (at + 1 + sectors) << 9 <= self._file.size:
            self.directory = at + 1
            self.goes_on = False
        return 1 + sectors


class _ScannedMap(CompressedMap):
    """Of the grains of a stream that were found without its directory."""

    why_missing: ClassVar[str] = NOT_FOUND

    def __init__(self, dd: DiskDriver, file: ImageFile, header: SparseHeader, scan: _Scan) -> None:
        self._scan = scan
        super().__init__(dd, file, hosted_layout(header))

    def _read_directories(self) -> None:
        self.faults = ()
        self.whole_directories = True
        self.directory = array("I", bytes(self.layout.directory_bytes))
        self.spare = None

    def table_place(self, index: int) -> int:
        """None lies anywhere, and each is another one."""
        return (index + 1) * self.table_bytes

    def read_table(self, index: int, read: Read) -> GrainTable:
        """What was found; of what lies behind it nothing is known."""
        start = index << self.table_shift
        table, known = self._scan.tables.get(index), self._scan.known
        if table is None and start >= known:
            raise ImageFormatError(NOT_FOUND)
        table = self.empty if table is None else table
        if start + (1 << self.table_shift) > known:
            table = table[:]
            for number, place in enumerate(table):
                if place == HOLE and start + (number << self.grain_shift) >= known:
                    table[number] = _UNKNOWN
        return self._table(index, self.table_place(index), table)

    def empty_tables(self, index: int, end: int) -> int:
        """None: the directory here says nothing."""
        return 0
