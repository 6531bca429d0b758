"""The region table, of which there are two copies: where metadata and block table lie.

Source: MS-VHDX 2.2.3 (Region Table).
"""

from __future__ import annotations

import struct
from typing import Final
from uuid import UUID

import attrs

from tap_vhdx.headers import MIB, ReadAt, checksum_is_right, with_checksum
from tapcore import ImageFormatError, NotSupportedError

TABLES_AT: Final = (192 << 10, 256 << 10)
TABLE_BYTES: Final = 64 << 10
SIGNATURE: Final = b"regi"
HEADER: Final = struct.Struct("<4sIII")
ENTRY: Final = struct.Struct("<16sQII")
MOST_ENTRIES: Final = 2047

BAT: Final = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")


@attrs.frozen
class Region:
    """A range of the file.

    Attributes:
        id: of what it holds.
        offset: bytes.
        length: bytes.
        required: who does not know it must not open the file.
    """

    id: UUID
    offset: int
    length: int
    required: bool

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


@attrs.frozen
class Regions:
    """The regions of a file.

    Attributes:
        bat: the block table.
        metadata: what the disk is.
        others: that are not known here, and need not be.
        damage: what is wrong with one of the tables; empty: nothing is.
    """

    bat: Region
    metadata: Region
    others: tuple[Region, ...] = ()
    damage: str = ""

    @property
    def all(self) -> tuple[Region, ...]:
        """All of them."""
        return (self.bat, self.metadata, *self.others)

    def pack(self) -> bytes:
        """The bytes of a table."""
        entries = [
            ENTRY.pack(each.id.bytes_le, each.offset, each.length, int(each.required))
            for each in self.all
        ]
        head = HEADER.pack(SIGNATURE, 0, len(entries), 0)
        return with_checksum((head + b"".join(entries)).ljust(TABLE_BYTES, b"\0"))


def read_regions(read: ReadAt) -> Regions:
    """The regions of a file, by the first table that is good.

    Args:
        read: reads the file, as its log says.

    Raises:
        ImageFormatError: there is no good table, or something is missing, or impossible.
        NotSupportedError: a region that is not known must be.
    """
    tables = [_unpack(read(at, TABLE_BYTES)) for at in TABLES_AT]
    found = tables[0] or tables[1]
    if found is None:
        raise ImageFormatError("has no region table whose checksum is right")
    damage = ""
    if tables[0] != tables[1]:
        which = "second" if tables[0] else "first"
        damage = f"{which} region table is damaged, or not as the other one, which is used"
    known = {}
    others = []
    for each in found:
        if each.id not in (BAT, METADATA):
            others.append(each)
            if each.required:
                raise NotSupportedError(f"has a region that is not known here ({each.id})")
        elif each.id in known:
            raise ImageFormatError("has two regions of one kind")
        else:
            known[each.id] = each
    if len(known) < 2:
        raise ImageFormatError("has no block table, or no metadata")
    return Regions(known[BAT], known[METADATA], tuple(others), damage)


def _unpack(content: bytes) -> list[Region] | None:
    signature, _, count, _ = HEADER.unpack_from(content)
    if signature != SIGNATURE or count > MOST_ENTRIES or not checksum_is_right(content):
        return None
    entries = ENTRY.iter_unpack(content[HEADER.size : HEADER.size + count * ENTRY.size])
    regions = [
        Region(UUID(bytes_le=id), offset, length, bool(flags & 1))
        for id, offset, length, flags in entries
    ]
    for each in regions:
        if each.offset < MIB or (each.offset | each.length) % MIB or not each.length:
            raise ImageFormatError(f"has a region at an impossible place ({each.offset:#x})")
    return regions
