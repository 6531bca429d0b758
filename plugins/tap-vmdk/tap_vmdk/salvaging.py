"""Opening what is left of a damaged disk: what is not there is told by the reads that want it.

Of a split disk that are whole extents, or the ends of flat ones. A stream tells at its end where
all is; where that is cut off, its grains are looked for: they follow each other with their markers.
"""

from __future__ import annotations

import errno
import logging
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from tap_vmdk import sparse
from tap_vmdk.descriptor import ExtentLine
from tap_vmdk.grains import GrainMap
from tap_vmdk.layouts import hosted_layout
from tap_vmdk.parts import FlatPart, Part
from tap_vmdk.sparse import SparseHeader
from tap_vmdk.tables import HOLE
from tapcore import (
    DiskDriver,
    Extent,
    ImageFile,
    ImageFormatError,
    TapError,
    TdCallback,
    content_damaged,
)

log = logging.getLogger(__name__)

_UNKNOWN: Final = (1 << 32) - 1
"""In place of the entry of a grain of which nobody knows whether there was one."""

NOT_FOUND: Final = "its grain is not in what is left of the stream"


# ---- extents -----------------------------------------------------------------------------------


def is_damage(exc: TapError) -> bool:
    """Whether an extent that cannot be opened is lost, and not just refused to us."""
    return isinstance(exc, ImageFormatError) or exc.errno in (errno.ENOENT, errno.EIO)


class LostPart(Part):
    """An extent of which nothing can be read.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        why: without the image's name.
    """

    def __init__(self, line: ExtentLine, start: int, why: str) -> None:
        super().__init__(line, start)
        self._why = why

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Fails, and says why."""
        return cb(dd, content_damaged(dd, sector, nb, self._why), sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """All of it is missing."""
        yield Extent(sector, nb, "compressed", missing=True)


class CutFlatPart(FlatPart):
    """Content as it is, in a file that ends too early."""

    reason = "its file is shorter than its description says"

    def __init__(self, line: ExtentLine, start: int, file: ImageFile) -> None:
        super().__init__(line, start, file)
        self.writable = False
        self._there = start + max(file.size // 512 - line.offset, 0)
        self._why = f"its place lies past the end of its extent {file.path}"

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """What is there, and an answer for what is not."""
        finished, there = 0, min(max(self._there - sector, 0), nb)
        if there:
            finished = super().read(dd, sector, there, buf[: there << 9], cb, id, prv)
        if there < nb:
            sector, nb = sector + there, nb - there
            res = content_damaged(dd, sector, nb, self._why)
            finished += cb(dd, res, sector, nb, id, prv)
        return finished

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """As of a whole file; the rest is missing."""
        there = min(max(self._there - sector, 0), nb)
        if there:
            yield from super().extents(sector, there)
        if there < nb:
            yield Extent(sector + there, nb - there, "data", missing=True)


# ---- streams -----------------------------------------------------------------------------------


def map_without_footer(file: ImageFile, header: SparseHeader, cache_bytes: int) -> GrainMap:
    """Of a stream whose end is not there.

    Args:
        file: open.
        header: of it; its grains are compressed, and have markers.
        cache_bytes: of `GrainMap`.

    Raises:
        ImageFormatError: the directory that was found makes no sense.
        OSError: as the system says.
    """
    scan = _Scan(file, header)
    scan.run()
    if not scan.directory:
        return _ScannedMap(file, header, scan)
    if scan.goes_on:
        log.warning(
            "%s: was changed after it was written, and the end of that is cut off: "
            "it is read as it was before",
            file.path,
        )
    found = attrs.evolve(
        header, gd_offset=scan.directory, flags=header.flags & ~sparse.FLAG_REDUNDANT
    )
    return GrainMap(file, hosted_layout(found), cache_bytes)


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
        size, step = sparse.MARKER.size, self._header.overhead
        at = max(step, 1)
        while step and (at << 9) + size <= self._file.size:
            value, length, kind = sparse.MARKER.unpack(self._file.read_metadata(at << 9, size))
            step = self._grain(at, value, length) if length else self._metadata(at, value, kind)
            at += step
        self.known = self._next if self._in_order else 0

    def _grain(self, at: int, sector: int, length: int) -> int:
        """Note a grain; returns the sectors that it takes, 0 where it cannot be one."""
        header = self._header
        end = (at << 9) + sparse.GRAIN_MARKER.size + length
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
        if kind == sparse.MARKER_PROGRESS:
            return 1
        if kind == sparse.MARKER_TABLE and sectors == header.table_sectors:
            return 1 + sectors
        if kind != sparse.MARKER_DIRECTORY or sectors != header.directory_sectors:
            return 0
        if (at + 1 + sectors) << 9 <= self._file.size:
            self.directory = at + 1
            self.goes_on = False
        return 1 + sectors


class _ScannedMap(GrainMap):
    """Of the grains of a stream that were found without its directory."""

    def __init__(self, file: ImageFile, header: SparseHeader, scan: _Scan) -> None:
        self._scan = scan
        # what was found is in memory in any case: as much of it as there is
        super().__init__(file, hosted_layout(header), 4 * header.entries)
        self.why_damaged = NOT_FOUND

    def _read_directories(self) -> None:
        self.faults = ()
        self.whole_directories = True
        self.directory = array("I", bytes(self.layout.directory_bytes))
        self.spare = None

    def load(self, index: int, read: Callable[[int, int], bytes | None]) -> array[int]:
        """What was found; of what lies behind it nothing is known."""
        start = index << self.table_shift
        table, known = self._scan.tables.get(index), self._scan.known
        if start + (self.layout.entries << self.grain_shift) <= known:
            return self.empty if table is None else table
        if table is None and start >= known:
            raise ImageFormatError(NOT_FOUND)
        table = self.empty[:] if table is None else table[:]
        for number, place in enumerate(table):
            if place == HOLE and start + (number << self.grain_shift) >= known:
                table[number] = _UNKNOWN
        return table

    def empty_tables(self, index: int, end: int) -> int:
        """None: the directory here says nothing."""
        return 0
