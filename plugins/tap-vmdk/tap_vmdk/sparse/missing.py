"""Grains that lie past the end of their file: somebody cut it, or it never grew so far."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tap_vmdk.sparse.grainmap import GrainMap
from tap_vmdk.sparse.sizes import round_up
from tapcore import ImageFile

_PIECE: Final = 64 << 10
_MOST_LOOKED_AT: Final = 8 << 20
"""Bytes of zeroes that are read before they are taken for something that was written."""


def tables_with_something(map: GrainMap) -> Iterator[tuple[int, int]]:
    """The numbers and places of the tables that may have entries; those in holes of the file are
    passed over, so that time follows what the file really holds."""
    index, count = 0, len(map.directory)
    while index < count:
        if empty := map.empty_tables(index, count):
            index += empty
            continue
        if map.table_at(map.directory[index]):
            yield index, map.directory[index]
        index += 1


def lost_grains(map: GrainMap) -> Iterator[tuple[int, int]]:
    """Grains of which the file, as it was opened, lacks all or a part, by the tables in it.

    Those that lie further than all of the disk would reach are left out: nothing ever was there,
    nor will be.

    Yields:
        The first sector of a grain on the file's disk, and its place in the file.

    Raises:
        OSError: a table cannot be read.
    """
    layout = map.layout
    likely = (map.file.size >> 9) + 2 * layout.capacity + 2048
    for index, where in tables_with_something(map):
        table = layout.decode_table(map.file.read_metadata(where * 512, layout.table_bytes))
        if max(table) < layout.first_grain or map.holds(layout.grain, max(table)):
            continue
        for number, place in enumerate(table):
            sector = (index << map.table_shift) + (number << map.grain_shift)
            needed = min(layout.grain, layout.capacity - sector)
            if layout.first_grain <= place <= likely and not map.holds(needed, place):
                yield sector, place


def unnamed_data(map: GrainMap) -> str:
    """That data lies in a file whose directories name no table, in words; else nothing.

    The directory's place may be damaged, and all that the disk holds be lost by that.
    """
    layout, size = map.layout, map.file.size
    if not layout.whole or layout.table_bytes > 4 * layout.entries:
        return ""  # streams and SESparse have more than grains and tables there
    if any(map.directory) or (map.spare is not None and any(map.spare)):
        return ""
    head = max(end for _, end in layout.reserved) - -(-layout.directory_bytes // 512)
    start = round_up(head, layout.grain) << 9  # wherever the directory is said to be
    if start >= size or not _has_data(map.file, start):
        return ""
    return "its grain directory names no table, and there is data in the file, which is not read"


def _has_data(file: ImageFile, start: int) -> bool:
    """Whether anything but zeroes lies behind an offset; after a long look, so it is said."""
    left = _MOST_LOOKED_AT
    for begin, end, data in file.runs(start, file.size - start):
        while data and begin < min(end, file.size):
            piece = file.read_metadata(begin, min(end - begin, file.size - begin, _PIECE))
            left -= len(piece)
            begin += len(piece)
            if any(piece) or left <= 0:
                return True
    return False
