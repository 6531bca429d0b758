"""The header of COWD files: the sparse extents of older ESX (vmfsSparse) and of VMware 3.

Little-endian; after libvmdk's documentation of the format.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from tap_vmdk.signature import COWD_MAGIC
from tap_vmdk.sparse.sizes import check_tables
from tapcore import ImageFormatError, NotSupportedError

ENTRIES: Final = 4096
"""In a grain table."""
_HEADER: Final = struct.Struct("<4sIIIIIII")


@attrs.frozen
class CowdHeader:
    """The fields that say where content lies.

    Attributes:
        version: 1.
        flags: 3 in what exists.
        capacity: sectors.
        grain: sectors in a grain; usually 1.
        gd_offset: of the grain directory, sectors.
        gd_entries: its length.
        next_free: where the next grain will be put, sectors.
    """

    version: int
    flags: int
    capacity: int
    grain: int
    gd_offset: int
    gd_entries: int
    next_free: int

    @classmethod
    def unpack(cls, raw: bytes) -> CowdHeader:
        """From the first bytes of a file.

        Raises:
            ImageFormatError, NotSupportedError: not such a file, or nothing that can be.
        """
        if len(raw) < _HEADER.size or raw[:4] != COWD_MAGIC:
            raise ImageFormatError("is not a COWD file")
        header = cls(*_HEADER.unpack_from(raw)[1:])
        if header.version != 1:
            raise NotSupportedError(f"is a COWD file of version {header.version}, not 1")
        if not 0 < header.grain <= 4096 or header.grain & (header.grain - 1):
            raise ImageFormatError(f"has grains of {header.grain} sectors, which is impossible")
        if not header.capacity:
            raise ImageFormatError("has no sectors")
        check_tables(header.tables)
        if header.gd_entries < header.tables:
            raise ImageFormatError("has a grain directory that is too short for its size")
        return header

    @property
    def tables(self) -> int:
        """How many grain tables cover the capacity."""
        return -(-self.capacity // (self.grain * ENTRIES))
