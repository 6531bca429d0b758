"""A bound for whoever walks through the tables of an image one after the other.

Tables of a sound image have a place each. A damaged or hostile one, of a few megabytes, may name
one table a million times over, and so describe a disk of exabytes with more runs than anybody can
print. Tables may be named again here, all or in part, only as long as that stays little.

Source: what is little is decided here; no format says it.
"""

from __future__ import annotations

import errno
from typing import Final

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
