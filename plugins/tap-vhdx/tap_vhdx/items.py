"""The metadata items: what the disk is.

Source: MS-VHDX 2.6 (Metadata Region).
"""

from __future__ import annotations

import struct
from typing import Final
from uuid import UUID

import attrs

from tap_vhdx.headers import MIB, ReadAt
from tap_vhdx.regions import Region
from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError

TABLE_BYTES: Final = 64 << 10
SIGNATURE: Final = b"metadata"
HEADER: Final = struct.Struct("<8sHH20x")
ENTRY: Final = struct.Struct("<16sIII4x")
MOST_ENTRIES: Final = 2047

FILE_PARAMETERS: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID: Final = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR: Final = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR: Final = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR: Final = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")

USER: Final = 1
OF_DISK: Final = 2
REQUIRED: Final = 4
"""Flags of an item: a user's; of the disk, not of the file; who does not know it must not open."""

LEAVE_ALLOCATED: Final = 1
HAS_PARENT: Final = 2

SIZES: Final = {
    FILE_PARAMETERS: 8,
    DISK_SIZE: 8,
    DISK_ID: 16,
    LOGICAL_SECTOR: 4,
    PHYSICAL_SECTOR: 4,
}
"""The items that every file has, and their bytes."""
FLAGS: Final = {FILE_PARAMETERS: REQUIRED, PARENT_LOCATOR: REQUIRED}
"""Those of the file; all others are of the disk."""

SMALLEST_BLOCK: Final = MIB
LARGEST_BLOCK: Final = 256 * MIB
LARGEST_DISK: Final = 64 << 40
MOST_LOCATOR_BYTES: Final = 64 << 10
CHUNK_SECTORS_SHIFT: Final = 23
"""log2 of the sectors that a block of the sector bitmap has bits for."""


@attrs.frozen(kw_only=True)
class Disk:
    """What the items say.

    Attributes:
        size: bytes.
        block_size: bytes.
        logical: bytes of a sector, as guests see it.
        physical: bytes of a sector of the host's disk, as guests are told.
        id: of the disk: its children have the same.
        fixed: every block keeps its place.
        locator: bytes of the parent locator; None where there is no parent.
        places: where each item lies in the file, and its length; bytes.
    """

    size: int
    block_size: int
    logical: int = 512
    physical: int = 4096
    id: UUID
    fixed: bool = False
    locator: bytes | None = None
    places: dict[UUID, tuple[int, int]] = attrs.field(factory=dict)

    @property
    def sectors(self) -> int:
        """Of 512 bytes."""
        return self.size >> SECTOR_SHIFT

    @property
    def blocks(self) -> int:
        """Of the disk."""
        return -(-self.size // self.block_size)

    @property
    def ratio_shift(self) -> int:
        """log2 of the blocks of a chunk, for which there is one block of the sector bitmap."""
        return ((self.logical << CHUNK_SECTORS_SHIFT) // self.block_size).bit_length() - 1

    @property
    def bat_entries(self) -> int:
        """How many the block table has."""
        blocks, shift = self.blocks, self.ratio_shift
        if self.locator is not None:
            return -(-blocks >> shift) * ((1 << shift) + 1)
        return blocks + (blocks - 1 >> shift)

    def pack(self) -> list[tuple[UUID, bytes]]:
        """The items of a new file."""
        flags = (LEAVE_ALLOCATED if self.fixed else 0) | (0 if self.locator is None else HAS_PARENT)
        items = [
            (FILE_PARAMETERS, struct.pack("<II", self.block_size, flags)),
            (DISK_SIZE, struct.pack("<Q", self.size)),
            (LOGICAL_SECTOR, struct.pack("<I", self.logical)),
            (PHYSICAL_SECTOR, struct.pack("<I", self.physical)),
            (DISK_ID, self.id.bytes_le),
        ]
        return items if self.locator is None else [*items, (PARENT_LOCATOR, self.locator)]


def pack_region(disk: Disk) -> bytes:
    """The first bytes of the metadata region of a new file: the table, and the items."""
    entries, content = [], b""
    for id, item in disk.pack():
        flags = FLAGS.get(id, OF_DISK | REQUIRED)
        entries.append(ENTRY.pack(id.bytes_le, TABLE_BYTES + len(content), len(item), flags))
        content += item
    table = HEADER.pack(SIGNATURE, 0, len(entries)) + b"".join(entries)
    return table.ljust(TABLE_BYTES, b"\0") + content


def read_disk(read: ReadAt, region: Region) -> Disk:
    """What the items of a file say.

    Args:
        read: reads the file, as its log says.
        region: that holds them.

    Raises:
        ImageFormatError: one is missing, or cannot be.
        NotSupportedError: one that is not known must be.
    """
    places = _places(read(region.offset, TABLE_BYTES), region)
    values = {id: read(*places[id]) for id in SIZES}
    block_size, flags = struct.unpack("<II", values[FILE_PARAMETERS])
    locator = None
    if flags & HAS_PARENT:
        if PARENT_LOCATOR not in places:
            raise ImageFormatError("has a parent, but does not say which")
        at, length = places[PARENT_LOCATOR]
        if length > MOST_LOCATOR_BYTES:
            raise ImageFormatError(f"says of its parent {length} bytes, which is too much")
        locator = read(at, length)
    disk = Disk(
        size=int.from_bytes(values[DISK_SIZE], "little"),
        block_size=block_size,
        logical=int.from_bytes(values[LOGICAL_SECTOR], "little"),
        physical=int.from_bytes(values[PHYSICAL_SECTOR], "little"),
        id=UUID(bytes_le=values[DISK_ID]),
        fixed=bool(flags & LEAVE_ALLOCATED) and locator is None,
        locator=locator,
        places=places,
    )
    _check(disk)
    return disk


def _places(table: bytes, region: Region) -> dict[UUID, tuple[int, int]]:
    """Where the items are that are known here."""
    signature, _, count = HEADER.unpack_from(table)
    if signature != SIGNATURE or count > MOST_ENTRIES:
        raise ImageFormatError("has damaged metadata")
    places: dict[UUID, tuple[int, int]] = {}
    for raw, offset, length, flags in ENTRY.iter_unpack(
        table[HEADER.size : HEADER.size + count * ENTRY.size]
    ):
        id = UUID(bytes_le=raw)
        known = id in SIZES or id == PARENT_LOCATOR
        if flags & USER or not known:
            if flags & REQUIRED:
                raise NotSupportedError(f"has a metadata item that is not known here ({id})")
            continue
        inside = offset >= TABLE_BYTES and offset + length <= region.length
        if id in places or not inside or length < SIZES.get(id, 0):
            raise ImageFormatError(f"has a damaged metadata item ({id})")
        places[id] = region.offset + offset, SIZES.get(id, length)
    for id in SIZES:
        if id not in places:
            raise ImageFormatError(f"lacks a metadata item ({id})")
    return places


def moved_item(table: bytes, id: UUID, length: int) -> tuple[int, int]:
    """Where an item can be put that becomes longer.

    Args:
        table: the first bytes of the region.
        id: of the item.
        length: that it is to have, bytes.

    Returns:
        The place of its entry's offset and length in the table, and that of the item, both from
        the start of the region; bytes.
    """
    _, _, count = HEADER.unpack_from(table)
    at, end = 0, TABLE_BYTES
    for number in range(count):
        place = HEADER.size + number * ENTRY.size
        raw, offset, old, _ = ENTRY.unpack_from(table, place)
        if raw == id.bytes_le:
            at = place + len(raw)
            if length <= old:
                return at, offset
        end = max(end, -(-(offset + old) // 8) * 8)
    return at, end


def without_item(table: bytes, id: UUID) -> bytes:
    """The table of a region when it has an item no more, as long as it was."""
    signature, reserved, count = HEADER.unpack_from(table)
    entries = [table[HEADER.size + number * ENTRY.size :][: ENTRY.size] for number in range(count)]
    kept = [each for each in entries if not each.startswith(id.bytes_le)]
    head = HEADER.pack(signature, reserved, len(kept))
    return (head + b"".join(kept)).ljust(HEADER.size + count * ENTRY.size, b"\0")


def _check(disk: Disk) -> None:
    block = disk.block_size
    if block & (block - 1) or not SMALLEST_BLOCK <= block <= LARGEST_BLOCK:
        raise ImageFormatError(f"has an impossible block size ({block} bytes)")
    if disk.logical not in (512, 4096):
        raise ImageFormatError(f"has sectors of an impossible size ({disk.logical} bytes)")
    if not 0 < disk.size <= LARGEST_DISK or disk.size % disk.logical:
        raise ImageFormatError(f"has an impossible size ({disk.size} bytes)")
