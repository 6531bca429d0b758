"""Tables of big-endian integers as arrays: read, byte-swapped at once, and written back."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import Final, TypeAlias

from tapcore import ImageFile

Words: TypeAlias = "array[int]"

_PART_BYTES: Final = 1 << 20
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
    words = array("Q")
    for _, content in parts(file, offset, count):
        words.frombytes(content)
    if _SWAP:
        words.byteswap()
    return words


def parts(file: ImageFile, offset: int, count: int) -> Iterator[tuple[int, bytes]]:
    """A table as `read` takes it, as (offset, bytes) of at most 1 MiB: it may have 32 MiB."""
    end = offset + (max(min(count * 8, file.size - offset), 0) & ~7)
    for at in range(offset, end, _PART_BYTES):
        yield at, file.read_metadata(at, min(_PART_BYTES, end - at))


def to_bytes(words: Words) -> bytes:
    """The integers as big-endian bytes; the array stays as it is."""
    if _SWAP:
        words = words[:]
        words.byteswap()
    return words.tobytes()


def zeroes(count: int, typecode: str = "Q") -> Words:
    """An array of `count` zeroes."""
    return array(typecode, (0,)) * count
