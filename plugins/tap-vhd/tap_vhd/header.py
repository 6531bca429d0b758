"""The dynamic header, of images with blocks: their size, their table, and which parent they have.

Source: Microsoft's Virtual Hard Disk Image Format Specification 1.0, Dynamic Disk Header Format.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from tap_vhd.footer import FOOTER_BYTES, NO_OFFSET, VERSION, checksum, with_checksum
from tap_vhd.footers import ReadAt
from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError

COOKIE: Final = b"cxsparse"
HEADER: Final = struct.Struct(">8sQQIIII16sII512s192s256s")
"""Cookie, reserved offset, offset of the block table, version, entries, block size, checksum;
unique id, time stamp and name of the parent (a reserved number before the name), locators,
reserved."""

LOCATOR: Final = struct.Struct(">4sIIIQ")
"""Platform, sectors kept for the name, bytes of it, reserved, offset."""
LOCATORS: Final = 8

HEADER_BYTES: Final = HEADER.size
CHECKSUM_AT: Final = 36

UNUSED: Final = 0xFFFFFFFF
"""An entry of the block table: the block is not there. Else it is the first sector of its bitmap,
behind which the block itself lies."""

SMALLEST_BLOCK: Final = 4096
LARGEST_BLOCK: Final = 256 << 20
MOST_TABLE_BYTES: Final = 64 << 20


@attrs.frozen
class Locator:
    """Where the name of the parent lies that one platform goes by.

    Attributes:
        platform: 4 letters.
        offset: of the name in the file, bytes.
        length: of it, bytes.
    """

    platform: bytes
    offset: int
    length: int

    def pack(self) -> bytes:
        """Its entry of the header."""
        sectors = -(-self.length >> SECTOR_SHIFT)
        return LOCATOR.pack(self.platform, sectors, self.length, 0, self.offset)


@attrs.frozen(kw_only=True)
class Header:
    """What a dynamic header says.

    Attributes:
        table_offset: of the block table, bytes.
        entries: of the table.
        block_size: bytes, without the bitmap.
        parent_id: the parent's `Footer.unique_id`.
        parent_time: when the parent was changed last, seconds since `EPOCH`.
        parent_name: as it is stored: UTF-16 of either byte order.
        locators: those that are used.
    """

    table_offset: int
    entries: int
    block_size: int
    parent_id: bytes = bytes(16)
    parent_time: int = 0
    parent_name: bytes = b""
    locators: tuple[Locator, ...] = ()

    @property
    def bitmap_bytes(self) -> int:
        """Of each block: a bit for each sector, in whole sectors."""
        return -(-self.block_size >> SECTOR_SHIFT + 3 + SECTOR_SHIFT) << SECTOR_SHIFT

    def entries_for(self, sectors: int) -> int:
        """Of a disk of so many sectors."""
        return -(-(sectors << SECTOR_SHIFT) // self.block_size)

    def pack(self) -> bytes:
        """Its 1024 bytes, with the checksum."""
        packed = HEADER.pack(
            COOKIE,
            NO_OFFSET,
            self.table_offset,
            VERSION,
            self.entries,
            self.block_size,
            0,
            self.parent_id,
            self.parent_time,
            0,
            self.parent_name,
            b"".join(locator.pack() for locator in self.locators),
            b"",
        )
        return with_checksum(packed, CHECKSUM_AT)

    def places(self, at: int) -> list[tuple[int, int]]:
        """What no block may lie in, as (start, end), bytes, but for the footer at the end.

        Args:
            at: where the header lies.
        """
        return [
            (0, FOOTER_BYTES),
            (at, at + HEADER_BYTES),
            (self.table_offset, self.table_offset + 4 * self.entries),
            *((each.offset, each.offset + each.length) for each in self.locators),
        ]


def read_header(read: ReadAt, at: int, sectors: int, size: int) -> Header:
    """Read and check a header.

    Args:
        read: reads the file.
        at: where the footer says that it lies, bytes.
        sectors: of the disk.
        size: of the file, bytes.

    Raises:
        ImageFormatError: it is damaged, or cannot be true.
        NotSupportedError: of a version that is not known.
    """
    if at < FOOTER_BYTES or at + HEADER_BYTES > size:
        raise ImageFormatError("has its dynamic header outside of the file")
    content = read(at, HEADER_BYTES)
    fields = HEADER.unpack(content)
    if fields[0] != COOKIE or fields[6] != checksum(content, CHECKSUM_AT):
        raise ImageFormatError("has a damaged dynamic header")
    if fields[3] >> 16 != VERSION >> 16:
        raise NotSupportedError(f"has a dynamic header of an unknown version ({fields[3]:#x})")
    header = Header(
        table_offset=fields[2],
        entries=fields[4],
        block_size=fields[5],
        parent_id=fields[7],
        parent_time=fields[8],
        parent_name=fields[10],
        locators=_locators(fields[11]),
    )
    _check(header, sectors, size)
    return header


def _locators(content: bytes) -> tuple[Locator, ...]:
    found = (LOCATOR.unpack_from(content, LOCATOR.size * number) for number in range(LOCATORS))
    return tuple(
        Locator(platform, offset, length)
        for platform, _, length, _, offset in found
        if platform.strip(b"\0") and length
    )


def _check(header: Header, sectors: int, size: int) -> None:
    block = header.block_size
    if block & (block - 1) or not SMALLEST_BLOCK <= block <= LARGEST_BLOCK:
        raise ImageFormatError(f"has an impossible block size ({block} bytes)")
    needed = header.entries_for(sectors)
    if needed > header.entries:
        raise ImageFormatError(
            f"has a block table that is too small ({header.entries} entries of {needed})"
        )
    if 4 * needed > MOST_TABLE_BYTES:
        raise ImageFormatError(f"has an impossible size ({sectors << SECTOR_SHIFT} bytes)")
    if header.table_offset < FOOTER_BYTES or header.table_offset + 4 * needed > size:
        raise ImageFormatError("has its block table outside of the file")
