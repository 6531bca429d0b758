"""What lies in a ring's pages, byte for byte: the structures of Xen's public header `io/blkif.h`.

The header gives structures in C. How a compiler lays them out is the guest's *protocol*: a guest of
32 bits packs them more tightly than one of 64. All numbers are little-endian. Sectors have 512
bytes here whatever the disk's are.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

import attrs

PAGE: Final = 4096
"""Bytes of a page: of the ring, of a grant, of a list of segments."""

SECTORS_PER_PAGE: Final = PAGE >> 9

MAX_SEGMENTS: Final = 11
"""Segments of a request that holds them itself: BLKIF_MAX_SEGMENTS_PER_REQUEST."""

MAX_INDIRECT_PAGES: Final = 8
"""Lists of segments that a request can name: BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST."""

DISCARD_SECURE: Final = 1
"""Flag of a discard: nothing of the content may be left anywhere."""


class Op(IntEnum):
    """What is asked for."""

    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    DISCARD = 5
    INDIRECT = 6


class Status(IntEnum):
    """What came of it."""

    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


SEGMENT: Final = Struct("<IBB2x")
"""A part of a page: its grant, its first sector and its last (inclusive). Also in the pages of an
indirect request."""

SEGMENTS_PER_PAGE: Final = PAGE // SEGMENT.size

READ_ONE: Final = 0x0100 | Op.READ
WRITE_ONE: Final = 0x0100 | Op.WRITE
"""Of `Protocol.short`: such an operation with one segment."""

WHOLE_PAGE: Final = (SECTORS_PER_PAGE - 1) << 8
"""Of `Protocol.short`: a segment that is all of its page."""

INDICES: Final = Struct("<4I")
"""The start of a ring: the producers' indices, and at which each side wants to be told."""

HEADER: Final = 64
"""Bytes before the first entry of a ring: indices, and padding."""


@attrs.frozen
class Protocol:
    """How a guest lays out requests and answers.

    Attributes:
        name: the guest's own, as it stands in its xenstore.
        entry: bytes of an entry of the ring, which holds a request or an answer.
        head: of any request with segments: operation, their number, id, first sector of the disk.
        segments_at: where they follow.
        one: a whole entry, of whose segments the first is of interest: `head`, then `SEGMENT`.
        short: the same with fewer numbers: operation and number of segments are one, and so are
            first and last sector.
        indirect: operation, operation meant, number of segments, id, first sector, handle, and
            the grants of the pages that list the segments.
        discard: operation, flag, id, first sector, number of sectors.
        response: id, operation, status.
    """

    name: str
    entry: int
    head: Struct
    segments_at: int
    one: Struct
    short: Struct
    indirect: Struct
    discard: Struct
    response: Struct

    def slots(self, pages: int) -> int:
        """Entries of a ring of so many pages: a power of two."""
        room: int = (pages * PAGE - HEADER) // self.entry
        return 1 << (room.bit_length() - 1)


X86_64: Final = Protocol(
    name="x86_64-abi",
    entry=112,
    head=Struct("<BB6xQQ"),
    segments_at=24,
    one=Struct("<BB6xQQIBB82x"),
    short=Struct("<H6xQQIH82x"),
    indirect=Struct("<BBH4xQQH2x8I"),
    discard=Struct("<BB6xQQQ"),
    response=Struct("<QBxh4x"),
)

X86_32: Final = Protocol(
    name="x86_32-abi",
    entry=108,
    head=Struct("<BB2xQQ"),
    segments_at=20,
    one=Struct("<BB2xQQIBB82x"),
    short=Struct("<H2xQQIH82x"),
    indirect=Struct("<BBHQQH2x8I"),
    discard=Struct("<BB2xQQQ"),
    response=Struct("<QBxh"),
)

PROTOCOLS: Final = {protocol.name: protocol for protocol in (X86_64, X86_32)}

assert all(protocol.one.size == protocol.entry for protocol in PROTOCOLS.values())
