"""The table of what can be unpacked on its own: zstd frames, xz blocks, members of gzip."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from itertools import pairwise
from typing import Final

from tapcore import ImageFormatError, NotSupportedError

MOST_PIECES: Final = 1 << 22
"""Of one file: 24 bytes of memory each."""
LARGEST_DISK: Final = 1 << 60


class Pieces:
    """Pieces in the order of the disk, none of them empty.

    Attributes:
        starts: where each begins on the disk, bytes; and where the last one ends.
        places: where each lies in the file, bytes.
        lengths: of each in the file, bytes.
    """

    __slots__ = ("lengths", "places", "starts")

    def __init__(self) -> None:
        self.starts = array("Q", [0])
        self.places = array("Q")
        self.lengths = array("Q")

    def __len__(self) -> int:
        return len(self.places)

    @property
    def size(self) -> int:
        """Of the disk, bytes."""
        return self.starts[-1]

    def add(self, place: int, length: int, content: int) -> None:
        """The next piece.

        Args:
            place: in the file, bytes.
            length: there, bytes.
            content: bytes of the disk that it holds; without any it is left out.

        Raises:
            ImageFormatError, NotSupportedError: there cannot be such a one, or so many.
        """
        if not content:
            return
        end = self.starts[-1] + content
        if end > LARGEST_DISK:
            raise ImageFormatError(f"says that its disk has {end} bytes, which cannot be")
        if len(self.places) == MOST_PIECES:
            raise NotSupportedError(f"consists of more than {MOST_PIECES} compressed pieces")
        self.starts.append(end)
        self.places.append(place)
        self.lengths.append(length)

    def pack(self) -> bytes:
        """All of them, for an index."""
        columns = (self.starts, self.places, self.lengths)
        return b"".join(in_file_order(each).tobytes() for each in columns)

    @classmethod
    def unpack(cls, packed: bytes) -> Pieces:
        """The opposite; raises ValueError, or as `add`."""
        numbers = array("Q")
        numbers.frombytes(packed)
        numbers = in_file_order(numbers)
        count, rest = divmod(len(numbers) - 1, 3)
        if rest or count < 0:
            raise ValueError("a table has another length than it can have")
        found, starts = cls(), numbers[: count + 1]
        places, lengths = numbers[count + 1 : 2 * count + 1], numbers[2 * count + 1 :]
        bounds = pairwise(starts)
        for place, length, (start, stop) in zip(places, lengths, bounds, strict=True):
            if stop <= start:
                raise ValueError("a piece is empty")
            found.add(place, length, stop - start)
        return found

    def find(self, offset: int) -> int:
        """The piece that holds a byte of the disk."""
        return bisect_right(self.starts, offset) - 1

    def bounds(self, index: int) -> tuple[int, int]:
        """First byte of a piece on the disk, and the first past it."""
        return self.starts[index], self.starts[index + 1]

    def content(self, index: int) -> int:
        """Bytes of the disk that a piece holds."""
        return self.starts[index + 1] - self.starts[index]

    def largest(self) -> int:
        """The most bytes of the disk that a piece holds."""
        starts = self.starts
        return max((starts[n + 1] - starts[n] for n in range(len(self))), default=0)


def in_file_order(numbers: array[int]) -> array[int]:
    """Numbers in the order of bytes that they have in a file, or here."""
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers
