"""Disks of which each piece is small enough to be unpacked whole: random access."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from tap_zraw.layout import LARGEST_PART
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tapcore import ImageFormatError, TapError

Decode: TypeAlias = Callable[[int, bytes, int], bytes]
"""`decode(index, packed, length)`: all of a piece, `length` bytes; raises ImageFormatError."""

_WORK_BYTES: Final = 2 * LARGEST_PART
"""Content that threads unpack at the same time."""

_DENSE: Final = 10
"""log2 of how much smaller a piece of zeroes is at least."""
_MOST_REMEMBERED: Final = 256


class PiecesApart:
    """A layout whose parts are the pieces.

    Args:
        file: that holds them.
        pieces: their table.
        decode: unpacks one.
    """

    def __init__(self, file: PackedFile, pieces: Pieces, decode: Decode) -> None:
        self._file = file
        self._decode = decode
        self.pieces = pieces
        self.size = pieces.size
        self.largest = pieces.largest()
        self.find = pieces.find
        self.bounds = pieces.bounds
        self._room = threading.Semaphore(max(_WORK_BYTES // max(self.largest, 1), 1))
        self._alike: dict[tuple[bytes, int], bool] = {}  # pieces of which there may be many

    def unpack(self, index: int) -> bytes:
        """See `Layout`."""
        place, length = self.pieces.places[index], self.pieces.lengths[index]
        content = self.pieces.content(index)
        try:
            if length > 2 * content + LARGEST_PART:
                raise ImageFormatError(f"has a false index: {length} bytes for {content}")
            with self._room:
                return self._decode(index, self._file.read(place, length), content)
        except ImageFormatError as exc:
            text = f"{exc.message}, in the piece at offset {place:#x} of the file"
            raise ImageFormatError(text, errno=exc.errno) from None

    def is_zero(self, index: int) -> bool:
        """What has not been looked at is not known."""
        return False

    def zeroes_until(self, index: int, end: int) -> int:
        """Zeroes are packed alike, and densely: of pieces that are the same one is unpacked."""
        while index < end and self._learn_zero(index):
            like = self.pieces.alike(index, end - index - 1)
            place, length = self.pieces.places[index], self.pieces.lengths[index]
            index += 1 + (self._file.repeats(place, length, like) if like else 0)
        return index

    def _learn_zero(self, index: int) -> bool:
        length, content = self.pieces.lengths[index], self.pieces.content(index)
        if length > 64 + (content >> _DENSE):
            return False
        packed = self._file.read(self.pieces.places[index], length)
        known = self._alike.get((packed, content))
        if known is None:
            if len(self._alike) == _MOST_REMEMBERED:
                return False
            known = self._alike[packed, content] = self._are_zeroes(index)
        return known

    def _are_zeroes(self, index: int) -> bool:
        try:
            found = self.unpack(index)
        except TapError:
            return False  # whoever reads it is told
        return not found.strip(b"\0")

    def close(self) -> None:
        """Nothing."""
