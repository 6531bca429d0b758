"""GUID partition tables: two headers and two tables, each with a checksum.

Source: UEFI specification 2.10, section 5.3.
"""

from __future__ import annotations

import logging
import struct
import uuid
import zlib
from typing import Final

import attrs

from tap_part.partition import Disk, Partition
from tapcore import ImageFormatError

log = logging.getLogger(__name__)

SIGNATURE: Final = b"EFI PART"

_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_MOST_BYTES: Final = 4 << 20
"""Of a table: the usual one has 16 KiB."""


@attrs.frozen
class Header:
    """One of the two headers.

    Attributes:
        place: its own sector.
        other: the other header's sector.
        first: first sector that partitions may use.
        last: last sector that they may use.
        disk: the disk's GUID.
        table: first sector of the table.
        count: rows of the table.
        size: bytes of a row.
        checksum: of the table.
    """

    place: int
    other: int
    first: int
    last: int
    disk: bytes
    table: int
    count: int
    size: int
    checksum: int


def unit_of(disk: Disk) -> int | None:
    """Bytes of a sector of the table, which the place of its header tells; None: there is none."""
    for unit in (512, 4096):
        if disk.size >= 2 * unit and disk.read(unit, 8) == SIGNATURE:
            return unit
    for unit in (512, 4096):  # the first header may be gone
        last = disk.size // unit - 1
        if last > 1 and disk.read(last * unit, 8) == SIGNATURE:
            return unit
    return None


def partitions(disk: Disk, unit: int, image: str) -> list[Partition]:
    """All partitions, by the first header, or where that is damaged by the second.

    Args:
        disk: with the table.
        unit: bytes of a sector of the table.
        image: its name, for the log.

    Raises:
        ImageFormatError: both are damaged, or the table is not to be trusted.
    """
    last = disk.size // unit - 1
    try:
        header, rows = _read(disk, 1, unit)
    except ImageFormatError as first:
        try:
            header, rows = _read(disk, last, unit)
        except ImageFormatError as second:
            text = f"its GPT is damaged: {first.message}; the second header: {second.message}"
            raise ImageFormatError(text) from None
        log.warning("%s: its first GPT header: %s; the second one is used", image, first.message)
        return _partitions(header, rows, unit)
    _compare(disk, header, rows, unit, image)
    return _partitions(header, rows, unit)


def _compare(disk: Disk, header: Header, rows: bytes, unit: int, image: str) -> None:
    """Tell of a second header that is damaged, or says something else: others may go by it."""
    try:
        other, other_rows = _read(disk, header.other, unit)
    except ImageFormatError as exc:
        log.warning("%s: its second GPT header: %s", image, exc.message)
        return
    if other_rows != rows or other.disk != header.disk:
        log.warning("%s: its two GPT tables differ; the first one is used", image)


def _read(disk: Disk, place: int, unit: int) -> tuple[Header, bytes]:
    """A header and its table, both checked.

    Raises:
        ImageFormatError: what is wrong with them.
    """
    if not 0 < place < disk.size // unit:
        raise ImageFormatError(f"sector {place} is not on the disk")
    header = _header(disk.read(place * unit, unit))
    if header.place != place:
        raise ImageFormatError(f"is said to lie at sector {header.place}, not {place}")
    size, start = header.count * header.size, header.table * unit
    if header.size < _ENTRY.size or header.size % 8 or size > _MOST_BYTES:
        raise ImageFormatError(f"has {header.count} rows of {header.size} bytes")
    if not 2 * unit <= start <= disk.size - size:
        raise ImageFormatError("its table does not lie on the disk")
    rows = disk.read(start, size)
    if zlib.crc32(rows) != header.checksum:
        raise ImageFormatError("the checksum of its table is wrong")
    return header, rows


def _header(sector: bytes) -> Header:
    signature, revision, size, checksum, _, *rest = _HEADER.unpack_from(sector)
    if signature != SIGNATURE:
        raise ImageFormatError("is not there")
    if revision >> 16 != 1 or not _HEADER.size <= size <= len(sector):
        raise ImageFormatError(f"is of revision {revision:#x}, with {size} bytes")
    content = bytearray(sector[:size])
    content[16:20] = bytes(4)
    if zlib.crc32(content) != checksum:
        raise ImageFormatError("its checksum is wrong")
    return Header(*rest)


def _partitions(header: Header, rows: bytes, unit: int) -> list[Partition]:
    found = []
    for n in range(header.count):
        kind, _, first, last, _, name = _ENTRY.unpack_from(rows, n * header.size)
        if kind == bytes(16):
            continue
        if not header.first <= first <= last <= header.last:
            text = f"sectors {first} to {last} are not among those that it may use"
            raise ImageFormatError(f"its partition {n + 1}: {text}")
        title = name.decode("utf-16-le", "replace").partition("\0")[0]
        length = (last - first + 1) * unit
        guid = str(uuid.UUID(bytes_le=kind))
        found.append(Partition(n + 1, first * unit, length, guid, title, "gpt"))
    return found
