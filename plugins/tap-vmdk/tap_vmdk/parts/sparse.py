"""Parts in sparse files, of whatever kind: what reads them, and what writes them if it can be."""

from __future__ import annotations

import attrs

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.grains.append import IN_USE_BEHIND, Appender, in_use_behind
from tap_vmdk.grains.compressed import CompressedReader
from tap_vmdk.grains.lookup import Grains
from tap_vmdk.grains.plain import PlainReader
from tap_vmdk.grains.writer import GrainWriter
from tap_vmdk.parts.part import Part
from tap_vmdk.signature import kind_of
from tap_vmdk.sparse import sesparse
from tap_vmdk.sparse.footer import with_footer
from tap_vmdk.sparse.grainmap import DEFAULT_CACHE, GrainMap
from tap_vmdk.sparse.header import FLAG_MARKERS, SparseHeader
from tap_vmdk.sparse.kinds import (
    cowd_header,
    cowd_layout,
    hosted_layout,
    sesparse_header,
    sesparse_layout,
)
from tap_vmdk.sparse.markers import GRAIN_MARKER, MARKER_DIRECTORY, is_marker
from tapcore import DiskDriver, ImageFile, ImageFormatError


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
    return read_only_part(line, start, GrainMap(file, layout, _cache(dd)), reason)


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
    markers = bool(header.flags & FLAG_MARKERS)
    try:
        map, tail = _hosted_map(dd, file, header)
    except ImageFormatError:
        if not (dd.options.salvage and header.compressed and markers):
            raise
        from tap_vmdk.sparse.streamscan import map_without_footer

        map, tail = map_without_footer(file, header, _cache(dd)), 0
    writing = not file.read_only and line.access == "RW"
    if not header.compressed:
        if writing:
            return writable_part(line, start, map, header)
        reason = "its description says that it must not be written"
        return read_only_part(line, start, map, reason)
    reason = "compressed extents can only be read, unless they are a streamOptimized disk alone"
    if writing and appendable and markers and map.layout.grain <= 2048:
        if not in_use_behind(map, tail):
            return _stream_part(line, start, map, header, tail)
        reason = IN_USE_BEHIND
    reader = CompressedReader(_grains(line, start, map), markers=markers)
    return Part(line, start, reader, file=file, map=map, reason=reason)


def read_only_part(line: ExtentLine, start: int, map: GrainMap, reason: str) -> Part:
    """A sparse file of plain grains that is only read.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        map: of its grains.
        reason: why it is only read.
    """
    reader = PlainReader(_grains(line, start, map))
    return Part(line, start, reader, file=map.file, map=map, reason=reason)


def writable_part(line: ExtentLine, start: int, map: GrainMap, header: SparseHeader) -> Part:
    """A sparse file of plain grains that is written.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        map: of its grains.
        header: of it.
    """
    grains, file = _grains(line, start, map), map.file
    reader, writer = PlainReader(grains), GrainWriter(grains, header)
    return Part(line, start, reader, writer, file=file, map=map, unit=file.sector_size)


def _stream_part(
    line: ExtentLine, start: int, map: GrainMap, header: SparseHeader, tail: int
) -> Part:
    """A stream that is appended to; `tail` as of `Appender`."""
    grains = _grains(line, start, map)
    reader, writer = CompressedReader(grains, markers=True), Appender(grains, header, tail)
    return Part(line, start, reader, writer, file=map.file, map=map, unit=grains.grain << 9)


def _grains(line: ExtentLine, start: int, map: GrainMap) -> Grains:
    return Grains(map, start, start + line.sectors)


def _hosted_map(dd: DiskDriver, file: ImageFile, header: SparseHeader) -> tuple[GrainMap, int]:
    """The grains of a hosted sparse file, and the sector where its footer begins."""
    found, tail = with_footer(file, header)
    found = attrs.evolve(  # the footer knows no better than the header where the descriptor lies
        found,
        descriptor_offset=header.descriptor_offset,
        descriptor_size=header.descriptor_size,
    )
    found.check()
    map = GrainMap(file, hosted_layout(found), _cache(dd))
    if header.flags & FLAG_MARKERS and header.compressed:
        _refuse_lost_directory(map, header)
    return map, tail


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


def _cache(dd: DiskDriver) -> int:
    given = dd.options.metadata_cache
    return DEFAULT_CACHE if given is None else given
