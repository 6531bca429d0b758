"""Parts in sparse files, of whatever kind: what reads them, and what writes them if it can be."""

from __future__ import annotations

from typing import Final

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.parts.append import IN_USE_BEHIND, StreamClusters, StreamMap, in_use_behind
from tap_vmdk.parts.part import Part
from tap_vmdk.signature import kind_of
from tap_vmdk.sparse import sesparse
from tap_vmdk.sparse.compressed import CompressedMap
from tap_vmdk.sparse.footer import with_footer
from tap_vmdk.sparse.grainmap import GrainMap
from tap_vmdk.sparse.header import FLAG_MARKERS, SparseHeader
from tap_vmdk.sparse.kinds import (
    cowd_header,
    cowd_layout,
    hosted_layout,
    sesparse_header,
    sesparse_layout,
)
from tap_vmdk.sparse.markers import GRAIN_MARKER, MARKER_DIRECTORY, is_marker
from tap_vmdk.sparse.writable import WritableGrainMap
from tapcore import DiskDriver, ImageFile, ImageFormatError
from tapcore.clusters import Clusters, NotForDirect, WritableClusters

_PAGE: Final = 8
"""Sectors. Tables go through the page cache, and content past it: where both are in one page, the
kernel may lose what is written."""


def sparse_part(dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile) -> Part:
    """A sparse file of whatever kind it is."""
    head = file.read_metadata(0, sesparse.HEADER_BYTES)
    kind = kind_of(head)
    if kind == "hosted":
        return hosted_part(dd, line, start, file, SparseHeader.unpack(head))
    if kind == "cowd":
        layout, reason = cowd_layout(cowd_header(file)), "vmfsSparse (COWD) can only be read"
    elif kind == "sesparse":
        layout, reason = sesparse_layout(sesparse_header(file)), "seSparse can only be read"
    else:
        raise ImageFormatError(f"its extent {file.path} is not a sparse file")
    return read_only_part(line, start, GrainMap(dd, file, layout), reason)


def hosted_part(
    dd: DiskDriver,
    line: ExtentLine,
    start: int,
    file: ImageFile,
    header: SparseHeader,
    *,
    appendable: bool = False,
) -> Part:
    """A hosted sparse file.

    Args:
        dd: the disk.
        line: what its descriptor says of the file.
        start: its first sector on the disk.
        file: open.
        header: of it; where its descriptor lies, it says in any case.
        appendable: a stream may be written at its end.

    Raises:
        ImageFormatError, NotSupportedError: it is damaged, or not supported.
        OSError: as the system says.
    """
    header.check()
    writing = not file.read_only and line.access == "RW"
    if not header.compressed:
        layout = hosted_layout(_ended(file, header)[0])
        if writing:
            if file.direct and (layout.grain | header.overhead) % _PAGE:
                raise NotForDirect("has grains in pages that tables lie in")
            return writable_part(line, start, WritableGrainMap(dd, file, layout, header))
        reason = "its description says that it must not be written"
        return read_only_part(line, start, GrainMap(dd, file, layout), reason)
    reason = "compressed extents can only be read, unless they are a streamOptimized disk alone"
    markers = bool(header.flags & FLAG_MARKERS)
    try:
        found, tail = _ended(file, header)
        map = CompressedMap(dd, file, hosted_layout(found), markers=markers)
        if markers:
            _refuse_lost_directory(map, header)
    except ImageFormatError:
        if not (dd.options.salvage and markers):
            raise
        from tap_vmdk.sparse.streamscan import map_without_footer

        return read_only_part(line, start, map_without_footer(dd, file, header), reason)
    if writing and appendable and markers and header.grain <= 2048:
        if not in_use_behind(map, tail):
            return _stream_part(line, StreamMap(dd, file, map.layout, header, tail))
        reason = IN_USE_BEHIND
    return read_only_part(line, start, map, reason)


def read_only_part(line: ExtentLine, start: int, map: GrainMap, reason: str) -> Part:
    """A sparse file that is only read.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        map: of its grains.
        reason: why it is only read.
    """
    map.sectors = line.sectors
    return Part(map.dd, line, start, map, Clusters, map.file, reason=reason)


def writable_part(line: ExtentLine, start: int, map: WritableGrainMap) -> Part:
    """A sparse file of plain grains that is written; arguments as of `read_only_part`."""
    map.sectors = line.sectors
    unit = map.file.sector_size
    return Part(map.dd, line, start, map, WritableClusters, map.file, unit)


def _stream_part(line: ExtentLine, map: StreamMap) -> Part:
    """A stream that is appended to: all of the disk."""
    map.sectors = line.sectors
    return Part(map.dd, line, 0, map, StreamClusters, map.file, map.layout.grain << 9)


def _ended(file: ImageFile, header: SparseHeader) -> tuple[SparseHeader, int]:
    """What counts of a file, its header or its footer, and the sector where its footer begins."""
    found, tail = with_footer(file, header)
    found = found._replace(  # the footer knows no better than the header where the descriptor lies
        descriptor_offset=header.descriptor_offset,
        descriptor_size=header.descriptor_size,
    )
    found.check()
    return found, tail


def _refuse_lost_directory(map: GrainMap, header: SparseHeader) -> None:
    """Raise for a stream whose directory is among zeroes: it holds grains, and no marker stands
    before that directory.

    Raises:
        ImageFormatError: so it is.
        OSError: as the system says.
    """
    if any(map.directory):
        return
    file, start = map.file, max(header.overhead, map.layout.first_grain) << 9
    if start + GRAIN_MARKER.size > file.size:
        return
    before = file.read_metadata(map.layout.directories[0] - 512, 512)
    first = file.read_metadata(start, GRAIN_MARKER.size)
    sector, size = GRAIN_MARKER.unpack(first)
    grain = size and sector < header.capacity and not sector % header.grain
    if grain and not is_marker(before, MARKER_DIRECTORY):
        raise ImageFormatError(
            "has grains, and an empty grain directory in a place where none was written "
            "(convert --salvage copies what is left)"
        )
