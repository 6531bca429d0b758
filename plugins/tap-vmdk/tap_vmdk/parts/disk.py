"""Requests on their way to the parts of a disk: most lie in one, and most disks have only one."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from tap_vmdk.parts.append import StreamClusters
from tap_vmdk.parts.part import Part
from tapcore import Extent, ImageFile, Then
from tapcore.clusters import ASK, AnswerPart, Clusters, ShortWay, WritableClusters


class PartedDisk:
    """What the hooks of `tapcore.clusters` call.

    Args:
        parts: in the order of the disk.
        files: all that are open for the disk.
        begin: makes the preparations for a first change, and calls `go_ahead`.

    Attributes:
        place: the short way of reads.
        place_to_write: the same of writes.
        write, write_zeroes, discard: as the hooks of these names.
        data: the file that the last place is in that one of them said.
        busy: where there is anything, no write takes the short way.
        uses: None: no place of a grain is ever given to another.
    """

    uses = None

    def __init__(
        self, parts: Sequence[Part], files: Sequence[ImageFile], begin: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._starts = [part.start for part in parts]
        self._written = [file for file in files if not file.read_only]
        self._files = files
        self._tables = [part.writing for part in parts if part.map and part.writing]
        inflating = [part.clusters for part in parts if part.bytes.unpacker]
        self._queues: list[ImageFile | Clusters] = [*files, *inflating]
        self._begin = begin
        self._writing = False
        self.data = files[0]
        self.busy: object = False
        self.write, self.write_zeroes, self.discard = self._write, self._write_zeroes, self._discard
        self.place: ShortWay = self._place
        self.place_to_write: ShortWay = self._place_to_write
        if len(parts) == 1:
            self.place, self.data = parts[0].clusters.place, parts[0].clusters.data

    def go_ahead(self) -> None:
        """The preparations have been made: those of the parts follow.

        Raises:
            OSError: as the system says.
        """
        writing = [part.writing for part in self._parts if part.writing is not None]
        for part in writing:
            part.begin_writing()
        self._writing = True
        if len(self._parts) == len(writing) == 1:
            self.place_to_write, self.busy = writing[0].place_to_write, writing[0].busy
            only = writing[0]
            self.write, self.write_zeroes, self.discard = (
                only.write,
                only.write_zeroes,
                only.discard,
            )

    # ---- from the disk to its parts ---------------------------------------------------------

    def _part(self, sector: int) -> Part:
        return self._parts[bisect_right(self._starts, sector) - 1]

    def _pieces(self, sector: int, nb_sectors: int) -> Iterator[tuple[Part, int, int]]:
        """The parts of a range, as (part, first sector, sectors)."""
        end = sector + nb_sectors
        number = bisect_right(self._starts, sector) - 1
        while sector < end:
            part = self._parts[number]
            count = min(part.end, end) - sector
            yield part, sector, count
            sector += count
            number += 1

    def _place(self, sector: int, nb_sectors: int) -> int:
        part = self._part(sector)
        if sector + nb_sectors > part.end:
            return ASK
        self.data = part.bytes.data
        return part.clusters.place(sector, nb_sectors)

    def _place_to_write(self, sector: int, nb_sectors: int) -> int:
        part = self._part(sector)
        mine = part.writing if self._writing else None
        if mine is None or mine.busy or sector + nb_sectors > part.end:
            return ASK
        self.data = mine.data
        return mine.place_to_write(sector, nb_sectors)

    # ---- requests ---------------------------------------------------------------------------

    def queue_read(self, where: int, buf: memoryview, then: Then) -> int:
        """Read what `place` said, later; returns 0."""
        return self.data.queue_read(where, buf, then)

    def read(self, sector: int, nb_sectors: int, buf: memoryview, answer: AnswerPart) -> int:
        """As `td_queue_read`."""
        finished = 0
        for part, first, count in self._pieces(sector, nb_sectors):
            piece = buf[(first - sector) << 9 : (first - sector + count) << 9]
            finished += part.clusters.read(first, count, piece, answer)
        return finished

    def _to_change(self, sector: int, nb: int) -> list[tuple[WritableClusters, int, int]]:
        """As `_pieces`, before a change.

        Raises:
            TapError, OSError: nothing may be changed.
        """
        if not self._writing:
            self._begin()
        pieces = []
        for part, first, count in self._pieces(sector, nb):
            if part.writing is None:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            pieces.append((part.writing, first, count))
        return pieces

    def queue_write(self, where: int, buf: memoryview, then: Then) -> int:
        """Write where `place_to_write` said, later; returns 0."""
        return self.data.queue_write(where, buf, then)

    def _write(self, sector: int, nb_sectors: int, buf: memoryview, answer: AnswerPart) -> int:
        only = self._part(sector)
        mine = only.writing if self._writing and sector + nb_sectors <= only.end else None
        if mine is not None:
            return mine.write(sector, nb_sectors, buf, answer)
        finished = 0
        for part, first, count in self._to_change(sector, nb_sectors):
            piece = buf[(first - sector) << 9 : (first - sector + count) << 9]
            finished += part.write(first, count, piece, answer)
        return finished

    def write_packed(self, sector: int, buf: memoryview, answer: AnswerPart) -> int:
        """As `td_queue_write_compressed`: a stream stores everything so, other kinds nothing."""
        only = self._parts[0].writing
        if not isinstance(only, StreamClusters):
            return -errno.EOPNOTSUPP
        return self.write(sector, len(buf) >> 9, buf, answer)

    def _write_zeroes(
        self, sector: int, nb_sectors: int, may_unmap: bool, answer: AnswerPart
    ) -> int:
        """Holes in the files, or entries that say so."""
        pieces = self._to_change(sector, nb_sectors)
        return sum(part.write_zeroes(at, count, may_unmap, answer) for part, at, count in pieces)

    def _discard(self, sector: int, nb_sectors: int, answer: AnswerPart) -> int:
        """Holes in the files."""
        pieces = self._to_change(sector, nb_sectors)
        return sum(part.discard(at, count, answer) for part, at, count in pieces)

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """As `td_extents`."""
        for part, first, count in self._pieces(sector, nb_sectors):
            yield from part.clusters.extents(first, count)

    # ---- to the disk ------------------------------------------------------------------------

    def flush(self, then: Then) -> int:
        """As `td_queue_flush`: of each part content first, then the tables that point to it."""
        left, status = 1, 0

        def flushed(res: int) -> int:
            nonlocal left, status
            left -= 1
            status = status or res
            return 0 if left else then(status)

        if self._writing:
            files = set(self._written) - {tables.data for tables in self._tables}
            left += len(self._tables) + len(files)
            for tables in self._tables:
                tables.flush(flushed)
            for file in files:
                file.queue_flush(flushed)
        return flushed(0)

    def submit(self) -> None:
        """Hand on what was queued."""
        for each in self._queues:
            each.submit()

    def drain(self) -> None:
        """Wait until nothing is under way, whatever leads to what."""
        self.submit()
        while any(file.in_flight for file in self._files):
            for file in self._files:
                file.drain()
            self.submit()

    def save(self) -> None:
        """Bring everything to the disk, and wait for it; nothing may be under way.

        Raises:
            OSError, TapError: it failed.
        """
        for tables in self._tables:
            tables.save()
        failed = [res for file in self._written if (res := file.flush_blocking())]
        if failed:
            raise OSError(-failed[0], os.strerror(-failed[0]))
