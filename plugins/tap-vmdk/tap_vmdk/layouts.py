"""From the headers of the three kinds of sparse files to one description of their tables."""

from __future__ import annotations

from tap_vmdk import cowd, sesparse, sparse
from tap_vmdk.cowd import CowdHeader
from tap_vmdk.metadataplaces import header_ranges
from tap_vmdk.sesparse import SeSparseHeader
from tap_vmdk.signature import HOSTED_MAGIC
from tap_vmdk.sparse import SparseHeader
from tap_vmdk.tables import Layout, words32
from tapcore import ImageFile, ImageFormatError

_TAIL_BYTES = 64 << 10
"""A footer is looked for so far from the end: some writers pad their files."""


def hosted_layout(header: SparseHeader) -> Layout:
    """Of a hosted sparse file; of a stream, with the directory's place from its footer."""
    room = header.descriptor_room
    offsets = [header.gd_offset]
    if header.flags & sparse.FLAG_REDUNDANT:
        offsets.append(header.rgd_offset)
    return Layout(
        capacity=header.capacity,
        grain=header.grain,
        entries=header.entries,
        tables=header.tables,
        table_bytes=header.entries * 4,
        directory_bytes=header.tables * 4,
        directories=tuple(min(offset, 1 << 54) * 512 for offset in offsets),
        first_grain=1 + (room if header.descriptor_offset == 1 else 0),
        reserved=header_ranges(header.descriptor_offset, room),
        zeroes=bool(header.flags & sparse.FLAG_ZEROED),
        whole=not header.compressed,
        decode_directory=words32,
        decode_table=words32,
    )


def cowd_layout(header: CowdHeader) -> Layout:
    """Of a COWD file."""
    return Layout(
        capacity=header.capacity,
        grain=header.grain,
        entries=cowd.ENTRIES,
        tables=header.tables,
        table_bytes=cowd.ENTRIES * 4,
        directory_bytes=header.tables * 4,
        directories=(header.gd_offset * 512,),
        first_grain=4,
        reserved=((0, 4),),
        zeroes=False,
        whole=True,
        decode_directory=words32,
        decode_table=words32,
    )


def sesparse_layout(header: SeSparseHeader) -> Layout:
    """Of an SESparse file."""
    return Layout(
        capacity=header.capacity,
        grain=header.grain,
        entries=header.entries,
        tables=header.tables,
        table_bytes=header.table_sectors * 512,
        directory_bytes=header.tables * 8,
        directories=(min(header.gd_offset, 1 << 54) * 512,),
        first_grain=2,
        reserved=((0, 2),),
        zeroes=True,
        whole=True,
        decode_directory=header.decode_directory,
        decode_table=header.decode_table,
    )


def with_footer(file: ImageFile, header: SparseHeader) -> tuple[SparseHeader, int]:
    """What counts of a stream: its footer, where the header says that there is one.

    Args:
        file: the stream.
        header: its header.

    Returns:
        The header or the footer, and the sector of the file where the footer begins, with its
        marker, if it has one (of a file without a footer, its end).

    Raises:
        ImageFormatError: there is none; the file was cut short.
    """
    if header.gd_offset != sparse.GD_AT_END:
        return header, -(-file.size // 512)
    start = max(file.size // 512 * 512 - _TAIL_BYTES, 0)
    tail = file.read_metadata(start, file.size // 512 * 512 - start)
    at = len(tail)
    while (at := tail.rfind(HOSTED_MAGIC, 512, at)) >= 0:
        if at % 512 == 0 and len(tail) - at >= sparse.HEADER_BYTES:
            found = SparseHeader.unpack(tail[at : at + sparse.HEADER_BYTES])
            if _fits(found, header):
                marked = sparse.is_marker(tail[at - 512 : at], sparse.MARKER_FOOTER)
                return found, (start + at) // 512 - marked
    raise ImageFormatError(
        "has no footer at its end: it was cut short, or never finished "
        "(convert --salvage copies what is left)"
    )


def _fits(footer: SparseHeader, header: SparseHeader) -> bool:
    """Whether a footer belongs to a header (and is not the content of a grain)."""
    return (
        (footer.capacity, footer.grain, footer.entries, footer.compression)
        == (header.capacity, header.grain, header.entries, header.compression)
    ) and footer.gd_offset != sparse.GD_AT_END


def cowd_header(file: ImageFile) -> CowdHeader:
    """Of an open file."""
    return CowdHeader.unpack(file.read_metadata(0, 2048))


def sesparse_header(file: ImageFile) -> SeSparseHeader:
    """Of an open file."""
    return SeSparseHeader.unpack(file.read_metadata(0, sesparse.HEADER_BYTES))
