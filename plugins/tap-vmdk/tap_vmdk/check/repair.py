"""Carrying out what a check has planned, only where nothing lies.

Grains and tables get new places behind the end of the file, and so do both directories, whole. Then
the header, one sector, names them at one stroke. Whatever stops it before, the file is what it was;
whatever lies over something else, nothing of it is written over.
"""

from __future__ import annotations

import contextlib
import struct
from array import array
from typing import Final

from tap_vmdk.check.plan import RepairPlan
from tap_vmdk.parts.part import Part
from tap_vmdk.parts.sparse import writable_part
from tap_vmdk.sparse.entries import CODING, LAST_SECTOR
from tap_vmdk.sparse.header import HEADER_BYTES, SparseHeader
from tap_vmdk.sparse.sizes import round_up
from tap_vmdk.sparse.writable import WritableGrainMap
from tapcore import NotSupportedError

_DIRECTORIES: Final = struct.Struct("<QQ")
_ROOM: Final = struct.Struct("<Q")
_ROOM_AT: Final = 36
"""Where the header says how long the descriptor is."""

_DIRECTORIES_AT: Final = 48
"""Where the header names the redundant and the first grain directory."""


def carry_out(part: Part, map: WritableGrainMap, plan: RepairPlan) -> Part:
    """Do what was planned, on disk when this returns.

    Args:
        part: nothing of it is in flight or unsaved.
        map: the part's.
        plan: of what the file is now.

    Returns:
        What takes the part's place.

    Raises:
        NotSupportedError: the file would become too long; nothing was changed.
        OSError: as the system says.
    """
    file = map.file
    size = file.size
    if plan.too_long:
        raise NotSupportedError("so much lies over something else that it cannot be disentangled")
    try:
        offsets = _Appending(map, plan).run()
        file.make_safe()
    except BaseException:
        with contextlib.suppress(OSError):
            file.resize(size)
        raise
    sector = bytearray(file.read_metadata(0, HEADER_BYTES))
    rgd, _ = _DIRECTORIES.unpack_from(sector, _DIRECTORIES_AT)
    rgd = offsets[1] if len(offsets) > 1 else rgd
    room = SparseHeader.unpack(bytes(sector)).descriptor_room
    _DIRECTORIES.pack_into(sector, _DIRECTORIES_AT, rgd, offsets[0])
    _ROOM.pack_into(sector, _ROOM_AT, room)  # a directory no longer says where the descriptor ends
    file.write_metadata(0, sector)
    file.make_safe()
    return _again(part, map, SparseHeader.unpack(bytes(sector)), offsets)


def _again(part: Part, old: WritableGrainMap, header: SparseHeader, offsets: list[int]) -> Part:
    layout = old.layout._replace(directories=tuple(place * 512 for place in offsets))
    map = WritableGrainMap(old.dd, old.file, layout, header)
    return writable_part(part.line, part.start, map)


class _Appending:
    """Writes everything new behind the end of a file."""

    def __init__(self, map: WritableGrainMap, plan: RepairPlan) -> None:
        self._map = map
        self._layout = map.layout
        self._file = map.file
        self._plan = plan
        self._end = plan.end
        self._size = self._file.size

    def run(self) -> list[int]:
        """Returns the places of the new directories, the first one first (sectors)."""
        grain = self._layout.grain << 9
        for old, new in self._plan.moves:
            if old >= 0:
                there = min(grain, self._size - (old << 9))  # what lies behind it is new
                content = self._file.read_metadata(old << 9, there)
                self._file.write_metadata(new << 9, content.ljust(grain, b"\0"))
        first = self._map.directory[:]
        directories = [first]
        if len(self._layout.directories) > 1:
            spare = self._map.spare
            directories.append(array("I", bytes(4 * len(first))) if spare is None else spare[:])
        self._put_tables(directories)
        if len(directories) > 1 and self._map.spare is None:
            self._copy_tables(first, directories[1])
        if not any(first) and any(directories[-1]):  # an empty one would give way to the other
            index = next(n for n, place in enumerate(directories[-1]) if place)
            first[index] = self._take(self._layout.table_sectors)
        return [self._put_directory(directory) for directory in directories]

    def _take(self, sectors: int) -> int:
        place, self._end = self._end, round_up(self._end + sectors, self._layout.grain)
        if self._end > LAST_SECTOR:
            raise NotSupportedError("is too long to be repaired: entries end at 2 TiB")
        self._file.truncate_up(self._end << 9)
        return place

    def _put_tables(self, directories: list[array[int]]) -> None:
        new = [(which, n, table) for (which, n), table in self._plan.tables.items() if table]
        place = self._take(len(new) * self._layout.table_sectors)
        for (which, index), table in self._plan.tables.items():
            if table is None and which < len(directories):
                directories[which][index] = 0
        step = self._layout.table_sectors
        for which, index, table in new:
            self._file.write_metadata(place << 9, CODING.encode(table))
            directories[which][index] = place
            place += step
        for index, count in self._plan.missing:
            place = self._take(count * step)
            directories[1][index : index + count] = array(
                "I", range(place, place + count * step, step)
            )

    def _copy_tables(self, first: array[int], other: array[int]) -> None:
        """Give each table of a directory a copy in the other one; empty ones stay holes."""
        step, size = self._layout.table_sectors, self._layout.table_bytes
        place = self._take(sum(map(bool, first)) * step)
        for index, old in enumerate(first):
            if not old or other[index]:
                continue
            content = self._file.read_metadata(old << 9, size)
            if any(content):
                self._file.write_metadata(place << 9, content)
            other[index] = place
            place += step

    def _put_directory(self, directory: array[int]) -> int:
        content = CODING.encode(directory)
        place = self._take(-(-len(content) // 512))
        self._file.write_metadata(place << 9, content)
        return place
