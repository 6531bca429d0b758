"""What lies in the files of a new disk: descriptors, and the heads of sparse files."""

from __future__ import annotations

import os
from typing import Final

from tap_vmdk.create.newdisk import NewDisk
from tap_vmdk.descriptor.ids import new_ids
from tap_vmdk.descriptor.text import NO_PARENT, Descriptor, ExtentLine, random_cid
from tap_vmdk.sparse.entries import CODING, LAST_SECTOR
from tap_vmdk.sparse.header import (
    COMPRESSION_DEFLATE,
    DEFAULT_GRAIN,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINE,
    FLAG_REDUNDANT,
    FLAG_ZEROED,
    GD_AT_END,
    SparseHeader,
)
from tap_vmdk.sparse.markers import MARKER_DIRECTORY, marker, stream_end
from tap_vmdk.sparse.sizes import round_up
from tapcore import UsageError

STREAM_NAME: Final = "generated-stream.vmdk"
"""What a stream calls itself where its name is not known, as VMware does. Programs that look for
the file by this name (Sleuth Kit) do not open it then."""

DESCRIPTOR_SECTORS: Final = 20
"""Reserved in a sparse file."""


def new_descriptor(
    disk: NewDisk, extents: list[ExtentLine], below: Descriptor | None = None, hint: str = ""
) -> Descriptor:
    """Of a new disk.

    Args:
        disk: what it is to be.
        extents: of it.
        below: the parent's descriptor; None: it has none.
        hint: where the parent is.

    Raises:
        UsageError: a name has characters that cannot be written there.
    """
    for name in (hint, *(line.name for line in extents)):
        if not can_be_written(name):
            raise UsageError("a name in a VMDK must not have quotes or control characters")
    parent = [f'parentFileNameHint="{hint}"'] if hint else []
    parent_cid = NO_PARENT if below is None else below.cid
    return Descriptor(
        [
            "# Disk DescriptorFile",
            "version=1",
            'encoding="UTF-8"',
            f"CID={random_cid():08x}",
            f"parentCID={parent_cid:08x}",
            f'createType="{disk.subformat}"',
            *parent,
            "",
            "# Extent description",
            *map(str, extents),
            "",
            "# The Disk Data Base",
            "#DDB",
            "",
            f'ddb.adapterType = "{disk.adapter}"',
            f'ddb.geometry.cylinders = "{disk.cylinders}"',
            f'ddb.geometry.heads = "{disk.heads}"',
            'ddb.geometry.sectors = "63"',
            f'ddb.longContentID = "{os.urandom(16).hex()}"',
            'ddb.toolsVersion = "2147483647"',
            *new_ids(below),
            f'ddb.virtualHWVersion = "{disk.hwversion}"',
        ]
    )


def can_be_written(name: str) -> bool:
    """Whether a descriptor can hold a name: it may have bytes that are no text, but no control
    characters."""
    return '"' not in name and all(c.isprintable() or "\udc80" <= c <= "\udcff" for c in name)


def sparse_geometry(disk: NewDisk, *, sectors: int = 0, embedded: bool = False) -> SparseHeader:
    """The header of a new sparse file, with the places of everything before its grains.

    Args:
        disk: what it is to be.
        sectors: of the file; 0: of the whole disk.
        embedded: the descriptor lies in the file.
    """
    flags = FLAG_NEWLINE | FLAG_REDUNDANT
    if disk.zeroed_grain:
        flags |= FLAG_ZEROED
    header = SparseHeader(2 if disk.zeroed_grain else 1, flags, sectors or disk.sectors)
    size = header.directory_sectors + header.tables * header.table_sectors
    rgd = 1 + DESCRIPTOR_SECTORS
    return header._replace(
        descriptor_offset=1 if embedded else 0,
        descriptor_size=DESCRIPTOR_SECTORS if embedded else 0,
        rgd_offset=rgd,
        gd_offset=rgd + size,
        overhead=round_up(rgd + 2 * size, header.grain),
    )


def sparse_head(header: SparseHeader, descriptor: bytes) -> list[tuple[int, bytes]]:
    """What a new sparse file holds, as (offset, content): its tables are holes, and so empty.

    Args:
        header: of `sparse_geometry`.
        descriptor: empty for an extent of a disk that has its own file.

    Raises:
        UsageError: the descriptor is too long.
    """
    pieces = [(0, header.pack()), (512, _fitting(descriptor))]
    for offset in (header.rgd_offset, header.gd_offset):
        first = offset + header.directory_sectors
        end = first + header.tables * header.table_sectors
        if end > LAST_SECTOR:
            raise UsageError("is too large for sparse files, whose places are below 2 TiB")
        directory = CODING.decode(b"")
        directory.extend(range(first, end, header.table_sectors))
        pieces.append((offset * 512, CODING.encode(directory)))
    return pieces


def stream_header(disk: NewDisk) -> SparseHeader:
    """Of a stream, with its directory at the end: version 3, which ESXi insists on."""
    flags = FLAG_NEWLINE | FLAG_COMPRESSED | FLAG_MARKERS
    return SparseHeader(
        3,
        flags,
        disk.sectors,
        descriptor_offset=1,
        descriptor_size=DESCRIPTOR_SECTORS,
        gd_offset=GD_AT_END,
        overhead=DEFAULT_GRAIN,
        compression=COMPRESSION_DEFLATE,
    )


def stream_head(disk: NewDisk, descriptor: bytes) -> bytes:
    """What comes before the grains of a stream."""
    header = stream_header(disk)
    head = header.pack() + _fitting(descriptor)
    return head.ljust(header.overhead * 512, b"\0")


def empty_stream(disk: NewDisk, descriptor: bytes) -> bytes:
    """A whole stream without grains."""
    header = stream_header(disk)
    directory = bytes(header.directory_sectors * 512)
    mark = marker(MARKER_DIRECTORY, header.directory_sectors)
    end = stream_end(header, header.overhead + 1)
    return stream_head(disk, descriptor) + mark + directory + end


def _fitting(descriptor: bytes) -> bytes:
    if len(descriptor) > DESCRIPTOR_SECTORS * 512:
        raise UsageError("its name, or its parent's, is too long")
    return descriptor
