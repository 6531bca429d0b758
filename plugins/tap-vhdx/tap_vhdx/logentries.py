"""Entries of the log: changes of 4 KiB pages of the file, which are safe once the entry is.

Source: MS-VHDX 2.3.1 (Log Entry).
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias
from uuid import UUID

import attrs

from tap_vhdx.headers import checksum_is_right, with_checksum

SECTOR: Final = 4096
HEADER: Final = struct.Struct("<4sIIIQII16sQQ")
"""Signature, checksum, length of the entry, tail, sequence number, descriptors, unused, id of the
log; how long the file was safely, and is to be at least."""
ZERO: Final = struct.Struct("<4s4xQQQ")
"""Signature; length, offset in the file, sequence number."""
DATA: Final = struct.Struct("<4s4s8sQQ")
"""Signature; last and first bytes of the page, offset in the file, sequence number."""
CONTENT: Final = struct.Struct("<4sI4084sI")
"""Signature, upper half of the sequence number; the rest of the page; lower half."""
MOST_PAGES: Final = (SECTOR - HEADER.size) // DATA.size
"""Of an entry that is written here: its descriptors are in one sector."""

Change: TypeAlias = "tuple[int, int, bytes | None]"
"""Offset and length in the file (bytes), and content; None: zeroes."""


@attrs.frozen
class Entry:
    """An entry.

    Attributes:
        at: where it begins in the log, bytes.
        length: bytes.
        tail: where the first entry begins that has to be replayed with it, bytes.
        sequence: its number.
        flushed: how long the file was when it was written, bytes.
        last: how long the file must be after it, bytes.
        changes: in their order.
    """

    at: int
    length: int
    tail: int
    sequence: int
    flushed: int
    last: int
    changes: tuple[Change, ...]


def pack_entry(
    log: UUID, at: int, sequence: int, file_size: int, pages: list[tuple[int, bytes]]
) -> bytes:
    """The bytes of an entry that stands alone.

    Args:
        log: its id.
        at: where the entry is to begin in the log, bytes.
        sequence: its number.
        file_size: of the file, bytes; all of it is safe.
        pages: offsets in the file, and contents; up to `MOST_PAGES`.
    """
    size = SECTOR * (1 + len(pages))
    ids = (log.bytes_le, file_size, file_size)
    head = HEADER.pack(b"loge", 0, size, at, sequence, len(pages), 0, *ids)
    descriptors = [
        DATA.pack(b"desc", page[-4:], page[:8], offset, sequence) for offset, page in pages
    ]
    high, low = sequence >> 32, sequence & 0xFFFFFFFF
    sectors = [CONTENT.pack(b"data", high, page[8:-4], low) for _, page in pages]
    first = (head + b"".join(descriptors)).ljust(SECTOR, b"\0")
    return with_checksum(first + b"".join(sectors))


@attrs.frozen
class EntryHead:
    """What the first bytes of an entry say, as far as that is possible.

    Attributes:
        at, length, tail, sequence, flushed, last: as of an entry.
        count: of descriptors.
    """

    at: int
    length: int
    tail: int
    sequence: int
    flushed: int
    last: int
    count: int


def read_head(content: bytes, at: int, log: UUID, log_length: int) -> EntryHead | None:
    """The head of an entry of a log; None where there is none.

    Args:
        content: of the log's sector.
        at: where that lies in the log, bytes.
        log: the log's id.
        log_length: bytes.
    """
    signature, _, length, tail, sequence, count, _, id, flushed, last = HEADER.unpack_from(content)
    if signature != b"loge" or id != log.bytes_le or not sequence:
        return None
    if not 0 < length <= log_length or length % SECTOR or tail % SECTOR or tail >= log_length:
        return None
    return EntryHead(at, length, tail, sequence, flushed, last, count)


def read_entry(head: EntryHead, content: bytes) -> Entry | None:
    """An entry that is whole; None where it is not.

    What is cheap to see is looked at before the checksum.

    Args:
        head: of it.
        content: all of its bytes.
    """
    sectors = -(-(HEADER.size + ZERO.size * head.count) // SECTOR)
    if sectors * SECTOR > len(content):
        return None
    changes: list[Change] = []
    at = sectors * SECTOR
    for number in range(head.count):
        place = HEADER.size + number * ZERO.size
        descriptor, sector = content[place : place + ZERO.size], content[at : at + SECTOR]
        change = _change(descriptor, sector, head.sequence)
        if change is None:
            return None
        changes.append(change)
        at += 0 if change[2] is None else SECTOR
    if at != len(content) or not checksum_is_right(content):
        return None
    return Entry(
        head.at, head.length, head.tail, head.sequence, head.flushed, head.last, tuple(changes)
    )


def _change(descriptor: bytes, sector: bytes, sequence: int) -> Change | None:
    if descriptor.startswith(b"zero"):
        _, length, offset, number = ZERO.unpack(descriptor)
        if number != sequence or length % SECTOR or offset % SECTOR:
            return None
        return offset, length, None
    signature, trailing, leading, offset, number = DATA.unpack(descriptor)
    if signature != b"desc" or number != sequence or offset % SECTOR or len(sector) < SECTOR:
        return None
    mark, high, middle, low = CONTENT.unpack(sector)
    if mark != b"data" or high << 32 | low != sequence:
        return None
    return offset, SECTOR, leading + middle + trailing
