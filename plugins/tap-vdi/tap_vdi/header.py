"""The header, with which every image begins.

Sources: VirtualBox, VDICore.h (VDIPREHEADER, VDIHEADER1) and what VDI.cpp asks of it. All numbers
are little-endian, and so are the numbers in a UUID.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias
from uuid import UUID

import attrs

from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Reads the file: offset and length in bytes; zeroes behind its end."""

SIGNATURE: Final = 0xBEDA107F
SIGNATURE_AT: Final = 64
VERSION: Final = 0x00010001
OLD_VERSION: Final = 2
"""Of the images of VirtualBox before its first release, whose header is another one."""

HEADER: Final = struct.Struct("<64sII III256sII4IIQIIII16s16s16s16s")
"""Text, signature, version; size of the header, type, flags, comment, offsets of block map and
blocks, geometry, unused, size of the disk, of a block, and of what lies before it, blocks, those
that are stored; UUIDs of the image, of its last change, of its parent, and of that one's."""
HEADER_BYTES: Final = HEADER.size

OWN_BYTES: Final = 0x180
"""What the header says of its own size, where it ends with the last UUID."""
SIZE_WITH_GEOMETRY: Final = 0x190
"""The same of a newer one, which has the geometry a second time."""

STORED_AT: Final = HEADER_BYTES - 4 * 16 - 4
BLOCKS_AT: Final = STORED_AT - 4
DISK_SIZE_AT: Final = BLOCKS_AT - 4 - 4 - 8
MAP_AT_AT: Final = DISK_SIZE_AT - 7 * 4
MODIFIED_AT: Final = HEADER_BYTES - 3 * 16
PARENT_AT: Final = HEADER_BYTES - 2 * 16
PARENT_MODIFIED_AT: Final = HEADER_BYTES - 16
"""Offsets of what is changed in place."""

DYNAMIC: Final = 1
FIXED: Final = 2
UNDO: Final = 3
DIFFERENCING: Final = 4
TYPES: Final = {DYNAMIC: "dynamic", FIXED: "fixed", DIFFERENCING: "differencing"}

NOTHING: Final = UUID(int=0)
SMALLEST_BLOCK: Final = 1 << SECTOR_SHIFT
LARGEST_BLOCK: Final = 256 << 20
MOST_BLOCKS: Final = 1 << 26
"""Of a disk: 64 TiB in blocks of 1 MiB, with a block map of 256 MiB."""


@attrs.frozen(kw_only=True)
class Header:
    """What a header says.

    Attributes:
        disk_type: `DYNAMIC`, `FIXED` or `DIFFERENCING`.
        disk_size: bytes; what is left of a sector is no part of the disk.
        block_size: bytes.
        extra: bytes before each block, which belong to whoever made the image.
        blocks: of the disk.
        stored: of these, places that are given out; other programs put new blocks behind them.
        map_at: where the block map begins, bytes.
        data_at: where the first place begins, bytes.
        id: of the image: what its children know it by.
        modified: of its last change.
        parent: the id of its parent, or `NOTHING`.
        parent_modified: what `modified` was there; `NOTHING` where that is not known.
        text: who made it.
        comment: of its owner.
        version: of the format.
    """

    disk_type: int
    disk_size: int
    block_size: int
    extra: int = 0
    blocks: int
    stored: int = 0
    map_at: int
    data_at: int
    id: UUID
    modified: UUID
    parent: UUID = NOTHING
    parent_modified: UUID = NOTHING
    text: bytes = b"<<< tapcore Virtual Disk Image >>>\n"
    comment: bytes = b""
    version: int = VERSION

    @property
    def sectors(self) -> int:
        """Of the disk. VirtualBox leaves out what is left of a sector, too."""
        return self.disk_size >> SECTOR_SHIFT

    @property
    def place_bytes(self) -> int:
        """Of a block with what lies before it."""
        return self.extra + self.block_size

    @property
    def differs(self) -> bool:
        """Whether what is not stored here is its parent's."""
        return self.disk_type == DIFFERENCING

    def where(self, place: int) -> int:
        """Offset of the content of a block, by the number of its place; bytes."""
        return self.data_at + place * self.place_bytes + self.extra

    def holds(self, size: int, block: int, place: int) -> bool:
        """Whether a file of so many bytes has all of a block, or what the disk has of its last."""
        needed = min(self.block_size, self.disk_size - block * self.block_size)
        return self.where(place) + needed <= size

    def change(self, content: bytes) -> bytes:
        """The first bytes of a file with the sizes, and the offsets, of this header."""
        changed = bytearray(content)
        struct.pack_into("<II", changed, MAP_AT_AT, self.map_at, self.data_at)
        struct.pack_into("<Q", changed, DISK_SIZE_AT, self.disk_size)
        struct.pack_into("<II", changed, BLOCKS_AT, self.blocks, self.stored)
        return bytes(changed)

    def pack(self) -> bytes:
        """Its bytes."""
        return HEADER.pack(
            self.text,
            SIGNATURE,
            self.version,
            OWN_BYTES,
            self.disk_type,
            0,
            self.comment,
            self.map_at,
            self.data_at,
            *(0, 0, 0, 1 << SECTOR_SHIFT),
            0,
            self.disk_size,
            self.block_size,
            self.extra,
            self.blocks,
            self.stored,
            *(each.bytes_le for each in (self.id, self.modified)),
            *(each.bytes_le for each in (self.parent, self.parent_modified)),
        )


def is_vdi(head: bytes) -> bool:
    """Whether a file that begins so says that it is one."""
    return head[SIGNATURE_AT : SIGNATURE_AT + 4] == SIGNATURE.to_bytes(4, "little")


def unpack_header(content: bytes) -> Header:
    """What the first bytes of a file say, not looked at any closer.

    Raises:
        ImageFormatError: it is no VDI.
        NotSupportedError: of a kind that is not known.
    """
    content = content.ljust(HEADER_BYTES, b"\0")
    if not is_vdi(content):
        raise ImageFormatError("is not a VDI image")
    fields = HEADER.unpack_from(content)
    version, disk_type = fields[2], fields[4]
    if version >> 16 != VERSION >> 16:
        old = ", of before VirtualBox 1.0" if version == OLD_VERSION or version >> 16 == 0 else ""
        text = f"is a VDI of version {version >> 16}.{version & 0xFFFF}{old}: VirtualBox reads it"
        raise NotSupportedError(text)
    if disk_type == UNDO:
        raise NotSupportedError("is a VDI that keeps what is to be undone, which nothing reads")
    if disk_type not in TYPES:
        raise NotSupportedError(f"is a VDI of an unknown type ({disk_type})")
    if fields[3] < OWN_BYTES:
        raise ImageFormatError(f"has an impossible header ({fields[3]} bytes)")
    ids = [UUID(bytes_le=each) for each in fields[-4:]]
    return Header(
        text=fields[0].split(b"\0")[0],
        version=version,
        disk_type=disk_type,
        comment=fields[6].split(b"\0")[0],
        map_at=fields[7],
        data_at=fields[8],
        disk_size=fields[14],
        block_size=fields[15],
        extra=fields[16],
        blocks=fields[17],
        stored=fields[18],
        id=ids[0],
        modified=ids[1],
        parent=ids[2],
        parent_modified=ids[3],
    )


def read_header(read: ReadAt, size: int) -> Header:
    """The header of an image, as far as it can be true.

    Args:
        read: reads the file.
        size: of the file, bytes.

    Raises:
        ImageFormatError: it is no VDI, or one that cannot be.
        NotSupportedError: of a kind that is not known.
    """
    header = unpack_header(read(0, HEADER_BYTES))
    block = header.block_size
    if block & (block - 1) or not SMALLEST_BLOCK <= block <= LARGEST_BLOCK:
        raise ImageFormatError(f"has an impossible block size ({block} bytes)")
    if not header.sectors or header.blocks * block < header.sectors << SECTOR_SHIFT:
        text = f"has an impossible size ({header.disk_size} bytes in {header.blocks} blocks)"
        raise ImageFormatError(text)
    if header.blocks > MOST_BLOCKS:
        raise NotSupportedError(f"has {header.blocks} blocks, more than {MOST_BLOCKS}")
    map_end = header.map_at + 4 * header.blocks
    if header.map_at < HEADER_BYTES or map_end > min(header.data_at, size):
        raise ImageFormatError("has a block map that is not between its header and its blocks")
    if (header.data_at | header.extra) & ((1 << SECTOR_SHIFT) - 1):
        raise NotSupportedError("has blocks that do not begin at whole sectors")
    if header.differs and header.parent == NOTHING:
        raise ImageFormatError("has a parent, but does not say which")
    return header
