"""The header of hosted sparse files ("Virtual Disk Format 5.0").

Numbers are little-endian, places and lengths in sectors of 512 bytes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tap_vmdk.signature import HOSTED_MAGIC
from tap_vmdk.sparse.sizes import check_tables
from tapcore import ImageFormatError, NotSupportedError

HEADER_BYTES: Final = 512
_HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH")

FLAG_NEWLINE: Final = 1
FLAG_REDUNDANT: Final = 2
FLAG_ZEROED: Final = 4
FLAG_COMPRESSED: Final = 1 << 16
FLAG_MARKERS: Final = 1 << 17

GD_AT_END: Final = (1 << 64) - 1
"""Of a header: the grain directory's place is said by the footer."""
NEWLINES: Final = b"\n \r\n"
UNCLEAN_OFFSET: Final = 72
"""Where the header's byte `uncleanShutdown` lies."""

COMPRESSION_NONE: Final = 0
COMPRESSION_DEFLATE: Final = 1

DEFAULT_GRAIN: Final = 128
DEFAULT_ENTRIES: Final = 512
MAX_GRAIN: Final = 1 << 14
"""Sectors (8 MiB); VMware's are 8 to 2048."""
MAX_CAPACITY: Final = 1 << 38
"""Sectors (128 TiB), more than any VMDK may have."""


class SparseHeader(NamedTuple):
    """A sparse file's header, or a stream's footer.

    Attributes:
        version: 1; 2 where zeroed grains are used; 3 for streams.
        flags: `FLAG_*`.
        capacity: of this file, sectors.
        grain: sectors in a grain.
        descriptor_offset: sectors; 0 where the file has no descriptor in it.
        descriptor_size: sectors.
        entries: in a grain table.
        rgd_offset: of the redundant grain directory, sectors.
        gd_offset: of the grain directory, sectors.
        overhead: sectors before the first grain.
        unclean: the last writer did not close the file.
        newlines: `NEWLINES`, unless the file went through a transfer of text.
        compression: `COMPRESSION_*`.
    """

    version: int
    flags: int
    capacity: int
    grain: int = DEFAULT_GRAIN
    descriptor_offset: int = 0
    descriptor_size: int = 0
    entries: int = DEFAULT_ENTRIES
    rgd_offset: int = 0
    gd_offset: int = 0
    overhead: int = 0
    unclean: int = 0
    newlines: bytes = NEWLINES
    compression: int = COMPRESSION_NONE

    @classmethod
    def unpack(cls, raw: bytes) -> SparseHeader:
        """From the first bytes of a file, whatever they say.

        Raises:
            ImageFormatError: not such a header.
        """
        if len(raw) < _HEADER.size or raw[:4] != HOSTED_MAGIC:
            raise ImageFormatError("is not a sparse VMDK")
        return cls(*_HEADER.unpack_from(raw)[1:])

    def pack(self) -> bytes:
        """A whole sector."""
        return _HEADER.pack(HOSTED_MAGIC, *self).ljust(HEADER_BYTES, b"\0")

    def check(self) -> None:
        """Refuse what no program could have written, or this one does not know.

        Raises:
            ImageFormatError, NotSupportedError: what is wrong.
        """
        if not 1 <= self.version <= 3:
            raise NotSupportedError(f"is a sparse VMDK of version {self.version}, not 1 to 3")
        if self.compression not in (COMPRESSION_NONE, COMPRESSION_DEFLATE):
            raise NotSupportedError(f"uses compression method {self.compression}, not deflate")
        if self.flags & FLAG_COMPRESSED and not self.compressed:
            raise ImageFormatError("says that its grains are compressed, and not by what")
        if not 0 < self.grain <= MAX_GRAIN or self.grain & (self.grain - 1):
            raise ImageFormatError(f"has grains of {self.grain} sectors, which is impossible")
        if not 0 < self.entries <= 4096 or self.entries & (self.entries - 1):
            raise ImageFormatError(f"has grain tables of {self.entries} entries")
        if not 0 < self.capacity <= MAX_CAPACITY:
            raise ImageFormatError(f"has an impossible size of {self.capacity} sectors")
        check_tables(self.tables)

    @property
    def compressed(self) -> bool:
        """Whether grains are stored compressed."""
        return self.compression == COMPRESSION_DEFLATE

    @property
    def descriptor_room(self) -> int:
        """Sectors that the descriptor has.

        Where it would cover all directories its size is wrong, and it ends where they begin; where
        it would cover one of two, that one is in a wrong place.
        """
        places = [self.gd_offset]
        if self.flags & FLAG_REDUNDANT:
            places.append(self.rgd_offset)
        start, end = self.descriptor_offset, self.descriptor_offset + self.descriptor_size
        if all(start < place < end for place in places):
            return min(places) - start
        return self.descriptor_size

    @property
    def tables(self) -> int:
        """How many grain tables cover the capacity."""
        return -(-self.capacity // (self.grain * self.entries))

    @property
    def table_sectors(self) -> int:
        """Sectors that a grain table takes."""
        return -(-self.entries * 4 // 512)

    @property
    def directory_sectors(self) -> int:
        """Sectors that a grain directory takes."""
        return -(-self.tables * 4 // 512)
