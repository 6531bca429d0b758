"""The footer, which every image ends with, and of which all but fixed ones begin with a copy.

Source: Microsoft's Virtual Hard Disk Image Format Specification 1.0, Hard Disk Footer Format. Which
of its two sizes is the disk's depends on who wrote it: see `Footer.sectors`.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError

COOKIE: Final = b"conectix"
FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427s")
"""Cookie, features, version, offset of the dynamic header, time stamp; application, version and
system of the creator; original and current size; cylinders, heads, sectors of a track; type,
checksum, unique id, saved state, reserved."""

FOOTER_BYTES: Final = FOOTER.size
OLD_FOOTER_BYTES: Final = 511
"""What Virtual PC wrote before its version of 2004."""

CHECKSUM_AT: Final = 64
VERSION: Final = 0x00010000
FEATURES: Final = 2
"""A reserved bit, which is always set."""

FIXED: Final = 2
DYNAMIC: Final = 3
DIFFERENCING: Final = 4
TYPES: Final = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}

NO_OFFSET: Final = (1 << 64) - 1
EPOCH: Final = 946684800
"""2000-01-01 UTC, where time stamps begin: seconds since 1970."""

MOST_CYLINDERS: Final = 65535
LARGEST_GEOMETRY: Final = MOST_CYLINDERS * 16 * 255
"""Sectors. A disk of this geometry may be larger than it says."""

BY_GEOMETRY: Final = (b"vpc ", b"qemu")
"""Creators whose disks are as large as their geometry says, and not as the current size says."""

BY_CURRENT_SIZE: Final = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")
"""Creators whose disks are as large as the current size says, wherever they are read. Of all others
QEMU goes by the geometry, and nobody else does."""

TAPDISK: Final = b"tap\0"
OLD_TAPDISK: Final = 1
"""blktap's version 0.1, whose bitmaps count bits from the other end of a byte."""


def checksum(structure: bytes, at: int) -> int:
    """The ones' complement of the sum of all bytes but those of the checksum itself.

    Args:
        structure: footer or dynamic header.
        at: where its checksum lies in it.
    """
    return ~(sum(structure) - sum(structure[at : at + 4])) & 0xFFFFFFFF


@attrs.frozen(kw_only=True)
class Footer:
    """What a footer says.

    Attributes:
        disk_type: `FIXED`, `DYNAMIC` or `DIFFERENCING`.
        current_size: bytes.
        original_size: the same when the image was made.
        geometry: cylinders, heads, sectors of a track.
        unique_id: of the image: what its children know it by.
        data_offset: of the dynamic header, bytes.
        time_stamp: when it was made, seconds since `EPOCH`.
        creator: the application that made it, 4 bytes.
        creator_version: of the application.
        creator_system: that it ran on, 4 bytes.
        features: flags.
        saved_state: of the virtual machine, which is not in the image.
        reserved: what else there is; kept as it is.
    """

    disk_type: int
    current_size: int
    original_size: int
    geometry: tuple[int, int, int]
    unique_id: bytes
    data_offset: int = NO_OFFSET
    time_stamp: int = 0
    creator: bytes
    creator_version: int
    creator_system: bytes = b"Wi2k"
    features: int = FEATURES
    saved_state: int = 0
    reserved: bytes = bytes(427)

    @property
    def identity(self) -> tuple[int, bytes, int]:
        """What the two footers of an image have in common, whatever else was changed in one."""
        return self.disk_type, self.unique_id, self.data_offset

    @property
    def by_geometry(self) -> bool:
        """Whether the geometry is the disk's size."""
        return self.creator in BY_GEOMETRY and self.has_geometry

    @property
    def has_geometry(self) -> bool:
        """Whether the geometry says anything of the size."""
        return 0 < self.geometry_sectors != LARGEST_GEOMETRY

    @property
    def geometry_sectors(self) -> int:
        """Those that the geometry has room for."""
        cylinders, heads, per_track = self.geometry
        return cylinders * heads * per_track

    @property
    def sectors(self) -> int:
        """The disk's size.

        Virtual PC shows what the geometry has room for, and QEMU does the same with images of
        these creators, but where the geometry is the largest that there is. All others go by the
        current size.
        """
        return self.geometry_sectors if self.by_geometry else self.current_size >> SECTOR_SHIFT

    def pack(self) -> bytes:
        """Its 512 bytes, with the checksum."""
        packed = FOOTER.pack(
            COOKIE,
            self.features,
            VERSION,
            self.data_offset,
            self.time_stamp,
            self.creator,
            self.creator_version,
            self.creator_system,
            self.original_size,
            self.current_size,
            *self.geometry,
            self.disk_type,
            0,
            self.unique_id,
            self.saved_state,
            self.reserved,
        )
        return with_checksum(packed, CHECKSUM_AT)


def with_checksum(structure: bytes, at: int) -> bytes:
    """A structure with its checksum in its place."""
    return structure[:at] + checksum(structure, at).to_bytes(4, "big") + structure[at + 4 :]


def unpack_footer(content: bytes) -> Footer:
    """A footer of 512 bytes, or 511.

    Raises:
        ImageFormatError: it is none, or damaged.
        NotSupportedError: of a kind that is not known.
    """
    content = content.ljust(FOOTER_BYTES, b"\0")
    fields = FOOTER.unpack(content)
    if fields[0] != COOKIE:
        raise ImageFormatError("is not a VHD image")
    if fields[14] != checksum(content, CHECKSUM_AT):
        raise ImageFormatError("has a damaged footer (its checksum is wrong)")
    if fields[2] >> 16 != VERSION >> 16:
        raise NotSupportedError(f"is a VHD of an unknown version ({fields[2]:#x})")
    if fields[13] not in TYPES:
        raise NotSupportedError(f"is a VHD of an unknown type ({fields[13]})")
    return Footer(
        features=fields[1],
        data_offset=fields[3],
        time_stamp=fields[4],
        creator=fields[5],
        creator_version=fields[6],
        creator_system=fields[7],
        original_size=fields[8],
        current_size=fields[9],
        geometry=fields[10:13],
        disk_type=fields[13],
        unique_id=fields[15],
        saved_state=fields[16],
        reserved=fields[17],
    )


def geometry_of(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors of a track of a disk (specification, appendix CHS Calculation).

    They hold as many sectors, or fewer.
    """
    sectors = min(sectors, LARGEST_GEOMETRY)
    if sectors >= MOST_CYLINDERS * 16 * 63:
        return sectors // 255 // 16, 16, 255
    tracks = sectors // 17
    heads = max(-(-tracks // 1024), 4)
    if heads <= 16 and tracks < heads * 1024:
        return tracks // heads, heads, 17
    for per_track in (31, 63):
        tracks = sectors // per_track
        if tracks < 16 * 1024:
            break
    return tracks // 16, 16, per_track
