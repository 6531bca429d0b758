"""SESparse files: the space-efficient sparse extents of newer ESXi, little-endian words of 8 bytes.

A directory's entry is a table's number with 1 in its highest hexadecimal digit. Of a table's
entry the highest digit is the kind; an allocated grain's number has its low 12 bits in bits 48 to
59, and the others below them.
"""

from __future__ import annotations

import struct
from array import array
from typing import Final

import attrs

from tap_vmdk.signature import SESPARSE_BYTES, kind_of
from tap_vmdk.sparse.sizes import check_tables
from tapcore import ImageFormatError, NotSupportedError
from tapcore.clusters import Coding

VERSION: Final = 0x2_0000_0001
_VOLATILE_MAGIC: Final = 0xCAFECAFE
HEADER_BYTES: Final = SESPARSE_BYTES
"""The constant header, and the volatile one behind it."""
_CONSTANT: Final = struct.Struct("<26Q")
_VOLATILE: Final = struct.Struct("<4Q")

_CODING: Final = Coding("Q", "little")

_KIND: Final = 0xF << 60
_UNMAPPED: Final = 1 << 60
_ZERO: Final = 2 << 60
_DATA: Final = 3 << 60
_LOW_BITS: Final = 0x0FFF << 48
_HIGH_BITS: Final = (1 << 48) - 1
_TABLE: Final = 0x10000000 << 32
DAMAGED: Final = (1 << 63) - 1
"""What an entry that makes no sense is decoded to: a sector past the end of every file."""


@attrs.frozen
class SeSparseHeader:
    """The fields that say where content lies, in sectors.

    Attributes:
        capacity: of the file's disk.
        grain: in a grain; 8.
        table_sectors: in a grain table; 64.
        gd_offset: of the grain directory.
        gd_sectors: its length.
        tables_offset: of the grain tables.
        tables_sectors: their length.
        grains_offset: of the grains.
    """

    capacity: int
    grain: int
    table_sectors: int
    gd_offset: int
    gd_sectors: int
    tables_offset: int
    tables_sectors: int
    grains_offset: int

    @classmethod
    def unpack(cls, raw: bytes) -> SeSparseHeader:
        """From the first KiB of a file, and its volatile header.

        Raises:
            ImageFormatError, NotSupportedError: not such a file, or not in a state to be read.
        """
        if kind_of(raw) != "sesparse":
            raise ImageFormatError("is not an SESparse file")
        words = _CONSTANT.unpack_from(raw)
        if words[1] != VERSION:
            raise NotSupportedError("is an SESparse file of an unknown version")
        volatile_at = words[10] * 512
        if volatile_at + _VOLATILE.size > len(raw):
            raise NotSupportedError("is an SESparse file with an unknown layout")
        magic, _, _, replay = _VOLATILE.unpack_from(raw, volatile_at)
        if magic != _VOLATILE_MAGIC:
            raise ImageFormatError("has a damaged volatile header")
        if replay:
            raise NotSupportedError(
                "was not closed properly, and replaying its journal is not supported"
            )
        header = cls(
            capacity=words[2],
            grain=words[3],
            table_sectors=words[4],
            gd_offset=words[16],
            gd_sectors=words[17],
            tables_offset=words[18],
            tables_sectors=words[19],
            grains_offset=words[24],
        )
        header._check(words[5])
        return header

    def _check(self, flags: int) -> None:
        if flags:
            raise NotSupportedError(f"is an SESparse file with unknown flags {flags:#x}")
        if self.grain not in (1, 2, 4, 8, 16, 32, 64, 128):
            raise ImageFormatError(f"has grains of {self.grain} sectors, which is impossible")
        if self.table_sectors not in (1, 2, 4, 8, 16, 32, 64):
            raise ImageFormatError(f"has grain tables of {self.table_sectors} sectors")
        if not 0 < self.capacity <= 1 << 38:
            raise ImageFormatError(f"has an impossible size of {self.capacity} sectors")
        check_tables(self.tables)
        if self.gd_sectors * 64 < self.tables:
            raise ImageFormatError("has a grain directory that is too short for its size")

    @property
    def entries(self) -> int:
        """In a grain table."""
        return self.table_sectors * 64

    @property
    def tables(self) -> int:
        """How many grain tables cover the capacity."""
        return -(-self.capacity // (self.grain * self.entries))

    def decode_directory(self, raw: bytes) -> array[int]:
        """The tables' places (sectors), 0 for none, from a directory's bytes."""
        most = self.tables_sectors // self.table_sectors
        places = array("Q")
        for word in _CODING.decode(raw):
            number = word ^ _TABLE
            if not word:
                places.append(0)
            elif number < most:
                places.append(self.tables_offset + number * self.table_sectors)
            else:
                places.append(DAMAGED)
        return places

    def decode_table(self, raw: bytes) -> array[int]:
        """The grains' places (sectors), 0 for none, 1 for zeroes, from a table's bytes."""
        words = _CODING.decode(raw)
        if not any(words):
            return words
        base, grain = self.grains_offset, self.grain
        for index, word in enumerate(words):
            if not word:
                continue
            kind = word & _KIND
            if kind == _DATA:
                number = (word & _LOW_BITS) >> 48 | (word & _HIGH_BITS) << 12
                words[index] = min(base + number * grain, DAMAGED)
            else:
                words[index] = 1 if kind in (_UNMAPPED, _ZERO) else DAMAGED
        return words
