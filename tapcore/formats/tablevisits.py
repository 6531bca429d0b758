"""A bound for whoever walks through the tables of an image one after the other.

Tables of a sound image have a place each. A damaged or hostile one, of a few megabytes, may name
one table a million times over, and so describe a disk of exabytes with more runs than anybody can
print. Tables may be named again here, all or in part, only as long as that stays little.

Source: what is little is decided here; no format says it.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, Protocol

from tapcore.errors import ImageFormatError

MOST_AGAIN: Final = 512 << 10
"""Bytes of tables that may be looked at again: 65,536 entries of 8 bytes."""

_FEW: Final = 4
"""Tables that may be looked at again, however large they are."""


class TableVisits:
    """The tables that were looked at so far.

    Args:
        table_bytes: of each table.
    """

    __slots__ = ("_again", "_places", "_size")

    def __init__(self, table_bytes: int) -> None:
        self._size = table_bytes
        self._again = max(MOST_AGAIN, _FEW * table_bytes)
        self._places: dict[int, int] = {}

    def visit(self, offset: int) -> None:
        """A table is about to be looked at.

        Args:
            offset: where it lies in its file, bytes.

        Raises:
            ImageFormatError: too much of what was looked at lies where other tables do.
        """
        size, places = self._size, self._places
        number = offset // size
        before, after = places.get(number - 1), places.get(number + 1)
        if (
            number in places
            or (before is not None and before + size > offset)
            or (after is not None and after < offset + size)
        ):
            self._again -= size
            if self._again < 0:
                raise ImageFormatError(
                    "is damaged: it names the same tables so often that not all of its disk can "
                    "be told",
                    errno=errno.EIO,
                )
        else:
            places[number] = offset


class _File(Protocol):
    """Of an `ImageFile`, what is needed here."""

    @property
    def size(self) -> int: ...

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]: ...


class EmptyTables:
    """Which tables hold nothing but zeroes, since they lie in holes of their file.

    A file of a few megabytes may have room for terabytes of tables in its holes. The file is asked
    once for each hole, and not again, so an object is of use only while nobody writes to it: from
    one pause of the walk to the next.

    Args:
        file: that holds the tables.
        table_bytes: of each table.
    """

    __slots__ = ("_ends", "_file", "_size", "_starts")

    def __init__(self, file: _File, table_bytes: int) -> None:
        self._file = file
        self._size = table_bytes
        self._starts: list[int] = []
        self._ends: list[int] = []

    def holds(self, offset: int) -> bool:
        """Whether a table lies wholly in a hole, inside the file.

        Args:
            offset: where it lies, bytes.

        Raises:
            IOFailedError: the file has become shorter.
        """
        at = bisect_right(self._starts, offset)
        if at and offset < self._ends[at - 1]:
            return offset + self._size <= self._ends[at - 1]
        length = self._file.size - offset
        if length < self._size:
            return False
        _, end, data = next(self._file.runs(offset, length))
        if data:
            return False
        self._starts.insert(at, offset)
        self._ends.insert(at, end)
        return offset + self._size <= end
