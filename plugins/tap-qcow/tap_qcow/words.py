"""Tables of 64-bit numbers: arrays in memory, big-endian in the file (an old L1 table: little)."""

from __future__ import annotations

import sys
from array import array
from typing import TypeAlias

Words: TypeAlias = "array[int]"

_NATIVE_IS_LITTLE = sys.byteorder == "little"


def from_bytes(content: bytes, *, little: bool = False) -> Words:
    """The numbers that bytes of a file hold (whole ones)."""
    words = array("Q", content)
    if little != _NATIVE_IS_LITTLE:
        words.byteswap()
    return words


def to_bytes(words: Words, *, little: bool = False) -> bytes:
    """The bytes of a file that hold these numbers; the array stays as it is."""
    if little != _NATIVE_IS_LITTLE:
        words = words[:]
        words.byteswap()
    return words.tobytes()


def zeroes(count: int) -> Words:
    """So many zeroes."""
    return array("Q", bytes(8 * count))
