"""The table of what can be unpacked on its own: zstd frames, xz blocks, members of gzip."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from itertools import accumulate, compress, islice, pairwise
from typing import Final

from tap_zraw.packedfile import alike
from tapcore import ImageFormatError, NotSupportedError

MOST_PIECES: Final = 1 << 22
"""Of one file: 24 bytes of memory each."""
LARGEST_DISK: Final = 1 << 60
_ROW: Final = 1 << 14
"""Pieces that are compared at a time."""


class Pieces:
    """Pieces in the order of the disk, none of them empty.

    Attributes:
        starts: where each begins on the disk, bytes; and where the last one ends.
        places: where each lies in the file, bytes.
        lengths: of each in the file, bytes.
    """

    __slots__ = ("_largest", "lengths", "places", "starts")

    def __init__(self) -> None:
        self._largest = 0
        self.starts = array("Q", [0])
        self.places = array("Q")
        self.lengths = array("Q")

    def __len__(self) -> int:
        return len(self.places)

    @property
    def size(self) -> int:
        """Of the disk, bytes."""
        return self.starts[-1]

    def add(self, place: int, length: int, content: int, count: int = 1) -> None:
        """The next piece, or several that are as long, one behind the other.

        Args:
            place: in the file, bytes.
            length: there, bytes; of several at least one.
            content: bytes of the disk that each holds; without any it is left out.
            count: of pieces.

        Raises:
            ImageFormatError, NotSupportedError: there cannot be such a one, or so many.
        """
        if not content:
            return
        start = self.starts[-1]
        end = start + content * count
        if end > LARGEST_DISK:
            raise ImageFormatError(f"says that its disk has {end} bytes, which cannot be")
        if len(self.places) + count > MOST_PIECES:
            raise NotSupportedError(f"consists of more than {MOST_PIECES} compressed pieces")
        if count > 1:
            self.starts.extend(range(start + content, end, content))
            self.places.extend(range(place, place + length * (count - 1), length))
            self.lengths.extend([length] * (count - 1))
        if content > self._largest:
            self._largest = content
        self.starts.append(end)
        self.places.append(place + length * (count - 1))
        self.lengths.append(length)

    @classmethod
    def in_a_row(cls, lengths: array[int], contents: array[int]) -> tuple[Pieces, int]:
        """Pieces that follow each other from the file's first byte; and where they end there.

        Args:
            lengths: in the file, bytes, less than 4 GiB; `MOST_PIECES` at most.
            contents: bytes of the disk, less than 4 GiB; those without any are left out.
        """
        found = cls()
        found.starts, found.places = _sums(contents), _sums(lengths)
        found.lengths = array("Q", lengths)
        some = contents[:1] + contents[-1:] if _same_but_last(contents) else contents
        found._largest = max(some, default=0)
        end = found.places.pop()
        if 0 in some:
            found.starts = array("Q", (0, *compress(islice(found.starts, 1, None), contents)))
            found.places = array("Q", compress(found.places, contents))
            found.lengths = array("Q", compress(found.lengths, contents))
        return found, end

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
        return self._largest

    def alike(self, index: int, most: int) -> int:
        """How many of the pieces behind one follow each other in the file, and are as long there,
        and on the disk; `most` at most."""
        starts, places, lengths = self.starts, self.places, self.lengths
        length, content = lengths[index], self.content(index)
        if not length:
            return 0

        def same(first: int, count: int) -> bool:
            at, end = index + 1 + first, index + 1 + first + count
            start, place = starts[at - 1] + content, places[at - 1] + length
            return (
                lengths[at:end] == array("Q", [length]) * count
                and starts[at + 1 : end + 1]
                == array("Q", range(start + content, start + content * count + 1, content))
                and places[at:end] == array("Q", range(place, place + length * count, length))
            )

        return alike(same, most, _ROW)


def _sums(numbers: array[int]) -> array[int]:
    """0, the first number, the first two together, and so on; quickly where they are the same."""
    if numbers and numbers[0] and _same_but_last(numbers):
        first, count = numbers[0], len(numbers) - 1
        sums = array("Q", range(0, first * count + 1, first))
        sums.append(first * count + numbers[-1])
        return sums
    return array("Q", accumulate(numbers, initial=0))


def _same_but_last(numbers: array[int]) -> bool:
    return numbers[:-1] == numbers[:1] * (len(numbers) - 1)


def in_file_order(numbers: array[int]) -> array[int]:
    """Numbers in the order of bytes that they have in a file, or here."""
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers
