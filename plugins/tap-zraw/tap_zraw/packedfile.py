"""The file that holds a compressed disk, for whoever may wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from tapcore import ImageFormatError

_PAGE: Final = 4 << 10
_RUN_BYTES: Final = 1 << 20
"""That are compared at a time, to tell how often something is repeated."""


def alike(same: Callable[[int, int], bool], most: int, step: int) -> int:
    """How many of the next things are alike; looks at few first, and at more while they are.

    Args:
        same: `same(first, count)` tells it of some of them, by number.
        most: of them.
        step: looked at together, at most.
    """
    found, count = 0, 1
    while count and found < most:
        count = min(count, most - found, step)
        if same(found, count):
            found += count
            count *= 2
        else:
            count //= 2
    return found


class PackedFile:
    """A file that is read at any offset; by several threads, but for `near`.

    Args:
        fd: open for reading; somebody else closes it.
        size: bytes.

    Attributes:
        size: as given.
    """

    __slots__ = ("_at", "_fd", "_page", "size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size
        self._at = 0
        self._page = b""

    def read(self, offset: int, length: int) -> bytes:
        """A range of it.

        Raises:
            ImageFormatError: it does not lie in the file.
            OSError: as the system says.
        """
        if offset < 0 or offset + length > self.size:
            raise ImageFormatError(f"is cut short: it goes on at {offset:#x}, behind its end")
        parts = []
        while length:
            part = os.pread(self._fd, length, offset)
            if not part:
                raise ImageFormatError("has become shorter while it was open")
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def some(self, offset: int, most: int) -> bytes:
        """What there is of a range; empty at the end of the file."""
        return self.read(offset, max(min(most, self.size - offset), 0))

    def near(self, offset: int, length: int) -> bytes:
        """A few bytes, of which the next ones are likely to be asked for; shorter at the end."""
        skip = offset - self._at
        if skip < 0 or skip + length > len(self._page):
            self._at, self._page, skip = offset, self.some(offset, _PAGE), 0
        return self._page[skip : skip + length]

    def repeats(self, offset: int, length: int, most: int) -> int:
        """How often a piece of the file is followed by one that is the same.

        Args:
            offset: of the piece, bytes.
            length: of it, bytes; short, since it is read.
            most: times that it may be.

        Raises:
            ImageFormatError: the piece does not lie in the file.
            OSError: as the system says.
        """
        piece, start = self.read(offset, length), offset + length

        def same(first: int, count: int) -> bool:
            return self.some(start + first * length, count * length) == piece * count

        return alike(same, most, max(_RUN_BYTES // length, 1))
