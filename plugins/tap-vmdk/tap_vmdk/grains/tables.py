"""Grain tables on disk: each has a place of its own before it changes, and a flush writes it.

An entry of a table is changed in memory when its grain is written, and on disk with the next
flush, after what it points to. So whatever a crash leaves, an entry on disk points to content.
"""

from __future__ import annotations

import errno
import os
from array import array
from functools import partial
from typing import Final

from tap_vmdk.movers import Save
from tap_vmdk.sparse.directories import without_tables
from tap_vmdk.sparse.entries import LAST_SECTOR, pack_entries
from tap_vmdk.sparse.grainmap import DAMAGED_DIRECTORY, DAMAGED_TABLE, GrainMap
from tap_vmdk.sparse.header import SparseHeader
from tap_vmdk.sparse.layout import round_up
from tapcore import ImageFile, ImageFormatError

_MOST_HEAD: Final = 1 << 30
"""Bytes past the file's end that are believed to be kept free for metadata."""

_Piece = tuple[int, bytes]
"""Offset in the file (bytes), and content."""


class TableStore:
    """The tables of a sparse file that grains are added to.

    Args:
        map: of its grains.
        header: of the file.
    """

    def __init__(self, map: GrainMap, header: SparseHeader) -> None:
        self._map = map
        self._file = map.file
        self._header = header
        self._grain = map.layout.grain
        self._new: set[int] = set()  # tables whose directory entries are not on disk yet
        self._moved: set[int] = set()  # those of them that hold what an older one does
        self._sure: set[int] = set()  # tables that may be written where they are
        self._saving: tuple[set[int], set[int], set[int]] = (set(), set(), set())
        self._places = map.watch_metadata()
        if header.overhead << 9 <= map.file.size + _MOST_HEAD:
            map.end = max(map.end, round_up(header.overhead, self._grain))

    # ---- space ------------------------------------------------------------------------------

    def take(self, sectors: int) -> int:
        """Space at the end of the file.

        Args:
            sectors: whole grains.

        Returns:
            Its first sector.

        Raises:
            OSError: an entry could not point there.
        """
        place, end = self._map.end, self._map.end + sectors
        if end > LAST_SECTOR:
            raise OSError(errno.EFBIG, "the file would exceed 2 TiB")
        self._map.end = end
        return place

    def need_table(self, index: int) -> None:
        """See to it that a table, which is in memory, has its own place in the file, in both
        directories.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        map = self._map
        if index in self._sure:
            return
        if index not in map.tables:
            raise ImageFormatError(DAMAGED_TABLE)
        place = map.directory[index]
        if not map.whole_directories or (place and not map.table_at(place)):
            raise ImageFormatError(DAMAGED_DIRECTORY)
        if not self._is_in_place(index):
            self._give_place(index)
        self._sure.add(index)

    def _is_in_place(self, index: int) -> bool:
        """Whether what a directory names is surely a table, and nobody else's.

        It lies among the metadata, or holds the same entries as its copy.
        """
        map, shared = self._map, self._places.shared
        places = [map.directory[index]]
        if map.spare is not None:
            places.append(map.spare[index])
        if not all(map.table_at(place) for place in places):
            return False
        if (0, index) in shared or (1, index) in shared:
            return False
        size = map.layout.table_bytes
        found = {self._file.read_metadata(place << 9, size) for place in places}
        if len(found) > 1:
            return False
        head = self._header.overhead - self._header.table_sectors
        return all(place <= head for place in places) or (len(places) > 1 and any(found.pop()))

    def _give_place(self, index: int) -> None:
        """Take space for a table, which becomes its own with the next flush."""
        directory, spare = self._map.directory, self._map.spare
        sectors = self._header.table_sectors
        size = round_up(sectors if spare is None else 2 * sectors, self._grain)
        place = self.take(size)
        self._file.truncate_up((place + size) << 9)
        if directory[index]:
            self._moved.add(index)
            self._map.unsaved.add(index)
        directory[index] = place
        if spare is not None:
            spare[index] = place + sectors
        self._new.add(index)

    # ---- what a flush writes ----------------------------------------------------------------

    def unsaved(self) -> Save | None:
        """The changed tables and directory entries, as they are now; see `Writer.unsaved`."""
        map = self._map
        tables, new, moved = map.unsaved, self._new, self._moved
        if not tables and not new:
            return None
        self._saving = (tables, new, moved)
        map.unsaved, self._new, self._moved = set(), set(), set()
        map.pinned += 1
        pieces: list[_Piece] = []
        entries: list[_Piece] = []
        offsets = map.layout.directories
        for offset, directory in zip(offsets, (map.directory, map.spare), strict=False):
            if directory is None:
                continue
            for index in sorted(tables):
                if map.table_at(directory[index]):
                    pieces.append((directory[index] << 9, pack_entries(map.tables[index])))
            for index in sorted(new):
                entries.append((offset + 4 * index, directory[index].to_bytes(4, "little")))
        return partial(_save, self._file, pieces, entries, bool(moved))

    def saved(self, ok: bool) -> None:
        """Tables may be dropped from memory again; or they have to be saved once more."""
        self._map.pinned -= 1
        tables, new, moved = self._saving
        self._saving = (set(), set(), set())
        if not ok:
            self._map.unsaved |= tables
            self._new |= new
            self._moved |= moved

    # ---- emptying ---------------------------------------------------------------------------

    def make_empty(self) -> None:
        """Turn every grain into a hole, on disk when this returns.

        Raises:
            ImageFormatError: a table lies over other metadata.
            OSError: as the system says.
        """
        map, file, layout = self._map, self._file, self._map.layout
        if self._places.shared or not map.whole_directories:
            raise ImageFormatError(DAMAGED_DIRECTORY)
        end = max(min(self._header.overhead, LAST_SECTOR), layout.first_grain)
        for offset in layout.directories:
            end = max(end, (offset + layout.directory_bytes + 511) >> 9)
        for directory in (map.spare, map.directory):  # the copies first: they know less
            end = max(end, self._empty_tables(directory) if directory is not None else 0)
        map.forget_all()
        map.unsaved.clear()
        _sync(file)
        end = round_up(end, self._grain)
        if file.size > end << 9:
            file.resize(end << 9)
        map.end = end
        _sync(file)

    def _empty_tables(self, directory: array[int]) -> int:
        """Fill the tables of a directory with holes; returns the first sector past all of them."""
        map, end, index = self._map, 0, 0
        while index < len(directory):
            place = directory[index]
            if not place:
                index += without_tables(directory, index, len(directory))
                continue
            count = map.tables_in_hole(directory, index, len(directory))
            if not count and map.table_at(place):
                self._file.write_metadata(place << 9, bytes(map.layout.table_bytes))
                count = 1
            if count:
                end = max(end, directory[index + count - 1] + self._header.table_sectors)
            index += count or 1
        return end


def _save(file: ImageFile, pieces: list[_Piece], entries: list[_Piece], moved: bool) -> int:
    for offset, content in pieces:
        file.write_metadata(offset, content)
    if moved and (res := file.flush_blocking()):
        return res  # a directory must not name a copy that is not there yet
    for offset, content in entries:
        file.write_metadata(offset, content)
    return 0


def _sync(file: ImageFile) -> None:
    if res := file.flush_blocking():
        raise OSError(-res, os.strerror(-res))
