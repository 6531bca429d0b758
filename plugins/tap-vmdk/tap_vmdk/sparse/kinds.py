"""From the headers of the three kinds of sparse files to one description of their tables."""

from __future__ import annotations

from tap_vmdk.sparse import cowd, sesparse
from tap_vmdk.sparse.cowd import CowdHeader
from tap_vmdk.sparse.entries import CODING
from tap_vmdk.sparse.header import FLAG_REDUNDANT, FLAG_ZEROED, SparseHeader
from tap_vmdk.sparse.layout import Layout
from tap_vmdk.sparse.metadata import header_ranges
from tap_vmdk.sparse.sesparse import SeSparseHeader
from tapcore import ImageFile


def hosted_layout(header: SparseHeader) -> Layout:
    """Of a hosted sparse file; of a stream, with the directory's place from its footer."""
    room = header.descriptor_room
    offsets = [header.gd_offset]
    if header.flags & FLAG_REDUNDANT:
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
        zeroes=bool(header.flags & FLAG_ZEROED),
        whole=not header.compressed,
        decode_directory=CODING.decode,
        decode_table=CODING.decode,
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
        decode_directory=CODING.decode,
        decode_table=CODING.decode,
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


def cowd_header(file: ImageFile) -> CowdHeader:
    """Of an open file."""
    return CowdHeader.unpack(file.read_metadata(0, 2048))


def sesparse_header(file: ImageFile) -> SeSparseHeader:
    """Of an open file."""
    return SeSparseHeader.unpack(file.read_metadata(0, sesparse.HEADER_BYTES))
