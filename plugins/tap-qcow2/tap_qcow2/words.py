"""Tables of big-endian integers as arrays: read, byte-swapped at once, and written back."""

from __future__ import annotations

import sys
from array import array
from typing import Final, TypeAlias

from tapcore import ImageFile

Words: TypeAlias = "array[int]"

_SWAP: Final = sys.byteorder == "little"


def from_bytes(content: bytes, typecode: str = "Q") -> Words:
    """An array of the integers in big-endian bytes (whole ones).

    Args:
        content: as on disk.
        typecode: of the array: "B", "H", "I" or "Q".
    """
    words = array(typecode, content)
    if _SWAP:
        words.byteswap()
    return words


def read(file: ImageFile, offset: int, count: int) -> Words:
    """The entries of a table, as many as lie inside the file; waits for the disk.

    Args:
        file: that holds it.
        offset: where it begins, bytes.
        count: how many there should be.

    Raises:
        OSError: as the system says.
    """
    inside = max(min(count * 8, file.size - offset), 0) & ~7
    return from_bytes(file.read_metadata(offset, inside))


def to_bytes(words: Words) -> bytes:
    """The integers as big-endian bytes; the array stays as it is."""
    if _SWAP:
        words = words[:]
        words.byteswap()
    return words.tobytes()


def zeroes(count: int, typecode: str = "Q") -> Words:
    """An array of `count` zeroes."""
    return array(typecode, (0,)) * count
