"""Entries of tables, of 64 bits: arrays in memory, in the file big-endian (an old L1: little)."""

from __future__ import annotations

import sys
from array import array
from typing import TypeAlias

Entries: TypeAlias = "array[int]"

_NATIVE_IS_LITTLE = sys.byteorder == "little"


def unpack_entries(content: bytes, *, little: bool = False) -> Entries:
    """The entries that bytes of a file hold (whole ones)."""
    entries = array("Q", content)
    if little != _NATIVE_IS_LITTLE:
        entries.byteswap()
    return entries


def pack_entries(entries: Entries, *, little: bool = False) -> bytes:
    """The bytes of a file that hold these entries; the array stays as it is."""
    if little != _NATIVE_IS_LITTLE:
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def empty_entries(count: int) -> Entries:
    """So many entries that name nothing."""
    return array("Q", bytes(8 * count))
