"""New grains and their tables: space at the end of a sparse file, and when the tables say so.

An entry of a table is changed in memory when its grain is written, and on disk with the next
flush, after what it points to. So whatever a crash leaves, an entry on disk points to content.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs

from tap_vmdk.descriptor import ExtentLine
from tap_vmdk.directories import without_tables
from tap_vmdk.grains import DAMAGED_DIRECTORY, DAMAGED_TABLE, GrainMap
from tap_vmdk.parts import Save
from tap_vmdk.sparse import UNCLEAN_OFFSET, SparseHeader
from tap_vmdk.sparseparts import SparsePart
from tap_vmdk.tables import HOLE, raw32, round_up
from tapcore import DiskDriver, ImageFormatError, TapError, TdCallback

_LAST_SECTOR: Final = 1 << 32
"""An entry has 32 bits."""
_MOST_HEAD: Final = 1 << 30
"""Bytes past the file's end that are believed to be kept free for metadata."""


@attrs.define(eq=False)
class Allocation:
    """New grains that are being written.

    Attributes:
        first: sector in the first grain, of the file's disk.
        grains: how many.
        place: sector of the file where they begin.
        waiting: what wants to go on when they are there.
    """

    first: int
    grains: int
    place: int
    waiting: list[Callable[[], int]] = attrs.field(factory=list)


class AllocatingPart(SparsePart):
    """A sparse file that grains are added to.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        map: of its grains.
        header: of the file.
    """

    def __init__(self, line: ExtentLine, start: int, map: GrainMap, header: SparseHeader) -> None:
        super().__init__(line, start, map)
        self.writable = True
        self.unit = map.file.sector_size
        self.header = header
        self._write_now = map.file.write_now
        self.busy: dict[int, Allocation] = {}  # by grain
        self._new_tables: set[int] = set()  # whose directory entries are not on disk yet
        self._moved: set[int] = set()  # those of them that hold what an older one does
        self._sure: set[int] = set()  # tables that may be written where they are
        self._saving: tuple[set[int], set[int], set[int]] = (set(), set(), set())
        self._places = map.watch_metadata()
        if header.overhead << 9 <= map.file.size + _MOST_HEAD:
            map.end = max(map.end, round_up(header.overhead, map.layout.grain))

    def not_busy(self, at: int, count: int) -> int:
        """How many sectors lie before the first grain that is being written."""
        if not self.busy:
            return count
        first, last = at >> self._grain_shift, (at + count - 1) >> self._grain_shift
        for grain in range(first + 1, last + 1):
            if grain in self.busy:
                return (grain << self._grain_shift) - at
        return count

    # ---- new grains -------------------------------------------------------------------------

    def write_new(
        self,
        dd: DiskDriver,
        kind: int,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Write sectors of grains, all in one table, that are holes or zeroes until now."""
        at = sector - self.start
        try:
            new = self._allocate(at, nb)
        except (TapError, OSError) as exc:
            return cb(dd, self._failed(exc, dd, sector, nb), sector, nb, id, prv)
        skip = at - new.first
        size = new.grains * self._grain
        whole = not skip and nb >= min(size, self.end - self.start - new.first)
        answer = (dd, sector, nb, id, (new, cb, prv))
        if kind == HOLE and dd.next is not None and not whole:
            self._copy_around(dd, new, skip, buf, answer)
            return 0
        try:
            if nb < size:  # what is not written reads as zeroes: it lies in a hole of the file
                self.map.file.truncate_up((new.place + size) << 9)
        except OSError as exc:
            return self._stored(
                dd, self._failed(exc, dd, sector, nb), sector, nb, id, (new, cb, prv)
            )
        return self._store(new, skip, buf, answer)

    def _allocate(self, at: int, nb: int) -> Allocation:
        """Reserve grains at the end of the file for a run of sectors."""
        index = at >> self._table_shift
        self.need_table(index)
        first, last = at >> self._grain_shift, (at + nb - 1) >> self._grain_shift
        grains = last - first + 1
        new = Allocation(first << self._grain_shift, grains, self.take(grains * self._grain))
        for grain in range(first, last + 1):
            self.busy[grain] = new
        self.map.pinned += 1
        return new

    def take(self, sectors: int) -> int:
        """Space at the end of the file.

        Args:
            sectors: whole grains.

        Returns:
            Its first sector.

        Raises:
            OSError: an entry could not point there.
        """
        place, end = self.map.end, self.map.end + sectors
        if end > _LAST_SECTOR:
            raise OSError(errno.EFBIG, "the file would exceed 2 TiB")
        self.map.end = end
        return place

    def need_table(self, index: int) -> None:
        """See to it that a table, which is in memory, has its own place in the file, in both
        directories.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        if index in self._sure:
            return
        if index not in self._tables:
            raise ImageFormatError(DAMAGED_TABLE)
        place = self.map.directory[index]
        if not self.map.whole_directories or (place and not self.map.table_at(place)):
            raise ImageFormatError(DAMAGED_DIRECTORY)
        if not self._is_in_place(index):
            self._give_place(index)
        self._sure.add(index)

    def _is_in_place(self, index: int) -> bool:
        """Whether what a directory names is surely a table, and nobody else's.

        It lies among the metadata, or holds the same entries as its copy.
        """
        map, shared = self.map, self._places.shared
        places = [map.directory[index]]
        if map.spare is not None:
            places.append(map.spare[index])
        if not all(map.table_at(place) for place in places):
            return False
        if (0, index) in shared or (1, index) in shared:
            return False
        size = map.layout.table_bytes
        found = {map.file.read_metadata(place << 9, size) for place in places}
        if len(found) > 1:
            return False
        head = self.header.overhead - self.header.table_sectors
        return all(place <= head for place in places) or (len(places) > 1 and any(found.pop()))

    def _give_place(self, index: int) -> None:
        """Take space for a table, which becomes its own with the next flush."""
        directory, spare = self.map.directory, self.map.spare
        sectors = self.header.table_sectors
        size = round_up(sectors if spare is None else 2 * sectors, self._grain)
        place = self.take(size)
        self.map.file.truncate_up((place + size) << 9)
        if directory[index]:
            self._moved.add(index)
            self.map.unsaved.add(index)
        directory[index] = place
        if spare is not None:
            spare[index] = place + sectors
        self._new_tables.add(index)

    def _copy_around(
        self,
        dd: DiskDriver,
        new: Allocation,
        skip: int,
        buf: memoryview,
        answer: tuple[Any, ...],
    ) -> None:
        """Fill what is not written of the new grains with what the parent holds there."""
        sectors = new.grains * self._grain
        content = memoryview(bytearray(sectors << 9))
        head = content[: skip << 9]
        tail_at = skip + (len(buf) >> 9)
        end = min(self.end - self.start - new.first, sectors)  # the disk may end in the grain
        tail = content[tail_at << 9 : end << 9]
        base = self.start + new.first
        wanted = [(s, b) for s, b in ((base, head), (base + tail_at, tail)) if len(b)]
        left, status = len(wanted), 0

        def copied(request: Any) -> None:
            nonlocal left, status
            left -= 1
            status = status or request.status
            if left:
                return
            if status:
                _, sector, nb, id, prv = answer
                self._stored(dd, status, sector, nb, id, prv)
            else:
                content[skip << 9 : tail_at << 9] = buf
                self._store(new, 0, content, answer)
            self.map.file.submit()  # this is no batch of the core's

        assert dd.td_state is not None
        assert dd.td_state.blkif is not None
        for sector, part in wanted:
            dd.td_state.blkif.read_below(dd, sector, part, copied)

    def _store(
        self, new: Allocation, skip: int, content: memoryview, answer: tuple[Any, ...]
    ) -> int:
        """Write the content of new grains, from a sector of them on."""
        offset = (new.place + skip) << 9
        res = self._write_now(offset, content)
        dd, sector, nb, id, prv = answer
        if res is None:
            return self.map.file.queue_write(
                offset, content, (self._stored, dd, sector, nb, id, prv)
            )
        return self._stored(dd, res, sector, nb, id, prv)

    def _stored(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
    ) -> int:
        """The grains are written, or it failed; those that waited for it go on."""
        new, cb, mine = prv
        self.map.pinned -= 1
        first = new.first >> self._grain_shift
        for grain in range(first, first + new.grains):
            del self.busy[grain]
        if res == 0:
            self.map.set_entries(new.first, new.place, new.grains)
        finished: int = cb(dd, res, sector, nb, id, mine)
        for again in new.waiting:
            finished += again()
        return finished

    # ---- metadata ---------------------------------------------------------------------------

    def keep_free(self, end: int) -> None:
        """What lies there becomes a hole of the file, as it reads anyway; new grains go behind."""
        self.map.file.truncate_up(end << 9)
        self.map.file_grew()

    def begin_writing(self) -> None:
        """Say in the header that the file is in use, as VMware does."""
        self.map.file.write_metadata(UNCLEAN_OFFSET, b"\1")

    def finish(self) -> None:
        """Say in the header that the file was closed."""
        self.map.file.write_metadata(UNCLEAN_OFFSET, b"\0")

    def unsaved(self) -> Save | None:
        """The changed tables and directory entries, as they are now."""
        tables, new, moved = self.map.unsaved, self._new_tables, self._moved
        if not tables and not new:
            return None
        self._saving = (tables, new, moved)
        self.map.unsaved, self._new_tables, self._moved = set(), set(), set()
        self.map.pinned += 1
        pieces: list[tuple[int, bytes]] = []
        entries: list[tuple[int, bytes]] = []
        offsets = self.map.layout.directories
        for offset, directory in zip(offsets, (self.map.directory, self.map.spare), strict=False):
            if directory is None:
                continue
            for index in sorted(tables):
                if self.map.table_at(directory[index]):
                    pieces.append((directory[index] << 9, raw32(self._tables[index])))
            for index in sorted(new):
                entries.append((offset + 4 * index, directory[index].to_bytes(4, "little")))
        return partial(self._save, pieces, entries, bool(moved))

    def _save(
        self, pieces: list[tuple[int, bytes]], entries: list[tuple[int, bytes]], moved: bool
    ) -> int:
        for offset, content in pieces:
            self.map.file.write_metadata(offset, content)
        if moved and (res := self.map.file.flush_blocking()):
            return res  # a directory must not name a copy that is not there yet
        for offset, content in entries:
            self.map.file.write_metadata(offset, content)
        return 0

    def saved(self, ok: bool) -> None:
        """Tables may be dropped from memory again; or they have to be saved once more."""
        self.map.pinned -= 1
        tables, new, moved = self._saving
        self._saving = (set(), set(), set())
        if not ok:
            self.map.unsaved |= tables
            self._new_tables |= new
            self._moved |= moved

    def make_empty(self) -> None:
        """Turn every grain into a hole, on disk when this returns.

        Raises:
            ImageFormatError: a table lies over other metadata.
            OSError: as the system says.
        """
        file, layout = self.map.file, self.map.layout
        if self._places.shared or not self.map.whole_directories:
            raise ImageFormatError(DAMAGED_DIRECTORY)
        end = max(min(self.header.overhead, _LAST_SECTOR), layout.first_grain)
        for offset in layout.directories:
            end = max(end, (offset + layout.directory_bytes + 511) >> 9)
        for directory in (self.map.spare, self.map.directory):  # the copies first: they know less
            end = max(end, self._empty_tables(directory) if directory is not None else 0)
        self.map.forget_all()
        self.map.unsaved.clear()
        res = file.flush_blocking()
        if res:
            raise OSError(-res, os.strerror(-res))
        end = round_up(end, self._grain)
        if file.size > end << 9:
            file.resize(end << 9)
        self.map.end = end
        res = file.flush_blocking()
        if res:
            raise OSError(-res, os.strerror(-res))

    def _empty_tables(self, directory: array[int]) -> int:
        """Fill the tables of a directory with holes; returns the first sector past all of them."""
        map, end, index = self.map, 0, 0
        while index < len(directory):
            place = directory[index]
            if not place:
                index += without_tables(directory, index, len(directory))
                continue
            count = map.tables_in_hole(directory, index, len(directory))
            if not count and map.table_at(place):
                map.file.write_metadata(place << 9, bytes(map.layout.table_bytes))
                count = 1
            if count:
                end = max(end, directory[index + count - 1] + self.header.table_sectors)
            index += count or 1
        return end
