"""What lies in a stream between the things that its tables refer to.

A stream may end with an end mark, hold marks of progress, or a footer beside a directory that the
header names already: all that belongs to it. What an earlier writing has left behind (a grain
that was written again, a table that another one has replaced) is dead space.
"""

from __future__ import annotations

from collections.abc import Iterator

from tap_vmdk.signature import HOSTED_MAGIC
from tap_vmdk.sparse.footer import with_footer
from tap_vmdk.sparse.header import GD_AT_END, MAX_CAPACITY, SparseHeader
from tap_vmdk.sparse.layout import Layout
from tap_vmdk.sparse.markers import (
    GRAIN_MARKER,
    MARKER,
    MARKER_DIRECTORY,
    MARKER_FOOTER,
    MARKER_PROGRESS,
    MARKER_TABLE,
)
from tapcore import ImageFile, ImageFormatError

_CHUNK = 128
"""Sectors that are read at a time."""
_NOTHING = bytes(512)


def footer_pieces(
    file: ImageFile, header: SparseHeader, layout: Layout
) -> Iterator[tuple[int, int]]:
    """Where a stream's footer lies, as (sector, sectors); and where the header names a directory
    already, also the other one that the footer names, with its tables and their markers.

    Raises:
        ImageFormatError: the header says that there is a footer, and there is none.
    """
    try:
        footer, tail = with_footer(file, header._replace(gd_offset=GD_AT_END))
    except ImageFormatError:
        if header.gd_offset == GD_AT_END:
            raise
        return
    yield tail, 3
    place, size = footer.gd_offset, layout.directory_bytes
    if place << 9 in layout.directories or not 0 < place <= (file.size - size) >> 9:
        return
    yield place - 1, 1 + -(-size // 512)
    for table in layout.decode_directory(file.read_metadata(place << 9, size)):
        if 0 < table <= (file.size - layout.table_bytes) >> 9:
            yield table - 1, 1 + -(-layout.table_bytes // 512)


def _is_marker(raw: bytes) -> bool:
    if len(raw) < 512 or raw == _NOTHING:
        return False
    _, size, kind = MARKER.unpack_from(raw)
    return size == 0 and kind in (
        MARKER_TABLE,
        MARKER_DIRECTORY,
        MARKER_FOOTER,
        MARKER_PROGRESS,
    )


def dead_sectors(file: ImageFile, first: int, end: int, cluster: int) -> int:
    """Sectors of a part of a stream that nothing refers to, and that belong to nothing.

    Args:
        file: the stream.
        first: sector of the file.
        end: the sector behind the part.
        cluster: bytes of a grain.
    """
    dead = 0
    chunk, start = b"", first
    while first < end:
        at = (first - start) << 9
        if at >= len(chunk):
            start, at = first, 0
            chunk = file.read_metadata(first << 9, min(end - first, _CHUNK) << 9)
            if not any(chunk):
                first += -(-len(chunk) // 512) or 1
                chunk = b""
                continue
        length, mine = _piece(chunk[at : at + 512], cluster)
        length = min(length, end - first) if length else end - first
        dead += 0 if mine else length
        first += length
    return dead


def _piece(raw: bytes, cluster: int) -> tuple[int, bool]:
    """What begins with a sector: its sectors (0: nobody knows), and whether the stream has it of
    right."""
    if not any(raw):  # an end mark, or padding
        return 1, True
    if raw.startswith(HOSTED_MAGIC):
        return 1, True
    if not _is_marker(raw):
        if len(raw) < GRAIN_MARKER.size:
            return 1, False
        _, size = GRAIN_MARKER.unpack_from(raw)
        whole = -(-(GRAIN_MARKER.size + size) // 512)
        return (whole, False) if 0 < size <= 2 * cluster else (0, False)
    sectors, _, kind = MARKER.unpack_from(raw)
    if kind in (MARKER_FOOTER, MARKER_PROGRESS):
        return 1, True
    return 1 + min(sectors, MAX_CAPACITY), False
