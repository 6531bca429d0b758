"""The table in the first sector of a PC's disk, and the chain of logical partitions.

Source: "Master boot record" and "Extended boot record" as IBM and Microsoft documented them; the
numbers are Linux's (block/partitions/msdos.c): 1 to 4 are the slots, 5 and on the logical ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import attrs

from tap_part.partition import Disk, Partition
from tapcore import ImageFormatError

SIGNATURE: Final = b"\x55\xaa"
GPT_TYPE: Final = 0xEE
EXTENDED_TYPES: Final = frozenset({0x05, 0x0F, 0x85})

_ENTRY: Final = struct.Struct("<B3xB3xII")
_FIRST_ENTRY: Final = 446
_MOST_LOGICAL: Final = 256


@attrs.frozen
class Entry:
    """A row of a table of four.

    Attributes:
        flag: 0x80: to be booted from.
        kind: type byte; 0: the row is free.
        start: in the disk's sectors, from wherever the table counts.
        count: in the disk's sectors.
    """

    flag: int
    kind: int
    start: int
    count: int

    @property
    def used(self) -> bool:
        """Whether it names a partition."""
        return self.kind != 0 and self.count != 0


def entries_of(sector: bytes) -> list[Entry] | None:
    """The four rows of a sector; None where it holds no table.

    The first sector of a file system has the signature, too, and other bytes where the flags are.
    """
    if sector[510:512] != SIGNATURE:
        return None
    rows = [Entry(*_ENTRY.unpack_from(sector, _FIRST_ENTRY + 16 * n)) for n in range(4)]
    return rows if all(row.flag in (0, 0x80) for row in rows) else None


def partitions(disk: Disk, rows: list[Entry], unit: int) -> list[Partition]:
    """All partitions, the extended one left out.

    Args:
        disk: with the table.
        rows: of its first sector.
        unit: bytes of a sector of the table.

    Raises:
        ImageFormatError: there are two extended partitions, or the chain in it is damaged.
    """
    found = []
    extended: list[tuple[int, Entry]] = []
    for number, row in enumerate(rows, 1):
        if not row.used:
            continue
        if row.kind in EXTENDED_TYPES:
            extended.append((number, row))
        else:
            found.append(_partition(number, row.start, row, unit))
    if len(extended) > 1:
        raise ImageFormatError("has two extended partitions, which programs read differently")
    for _, row in extended:
        for each in found:
            if each.start < (row.start + row.count) * unit and row.start * unit < each.end:
                raise ImageFormatError(f"its partition {each.number} overlaps the extended one")
        found += _logical(disk, row, unit)
    return found


def _partition(number: int, start: int, row: Entry, unit: int) -> Partition:
    return Partition(number, start * unit, row.count * unit, f"{row.kind:#04x}")


def _logical(disk: Disk, extended: Entry, unit: int) -> Iterator[Partition]:
    """The partitions in the extended one: each has a sector with its row, and where the next is."""
    first, end = extended.start, extended.start + extended.count
    at, seen, number = first, set[int](), 5
    while True:
        if at in seen or len(seen) == _MOST_LOGICAL:
            raise ImageFormatError("its chain of logical partitions does not end")
        seen.add(at)
        if not first <= at < end or (at + 1) * unit > disk.size:
            raise ImageFormatError("its chain of logical partitions leaves the extended one")
        rows = entries_of(disk.read(at * unit, 512))
        if rows is None:
            raise ImageFormatError(f"its chain of logical partitions breaks off at sector {at}")
        links = [row for row in rows[:2] if row.used and row.kind in EXTENDED_TYPES]
        for row in rows[:2]:
            if not row.used or row.kind in EXTENDED_TYPES:
                continue
            start = at + row.start
            if not row.start or start + row.count > end:
                text = "does not lie inside the extended one, behind its own sector"
                raise ImageFormatError(f"its partition {number} {text}")
            yield _partition(number, start, row, unit)
            number += 1
        if not links:
            return
        at = first + links[0].start
