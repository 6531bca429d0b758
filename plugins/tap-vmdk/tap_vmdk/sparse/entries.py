"""Entries of grain tables and directories.

Whatever the kind of file, an entry in memory is the sector of the file where the grain begins, 0
for a hole, or 1 for zeroes.
"""

from __future__ import annotations

import sys
from array import array
from typing import Final

HOLE: Final = 0
ZERO: Final = 1
LAST_SECTOR: Final = 1 << 32
"""An entry of a hosted sparse file has 32 bits."""


def unpack_entries(raw: bytes) -> array[int]:
    """The entries that bytes of a hosted or COWD file hold: little-endian, of 4 bytes."""
    entries = array("I")
    entries.frombytes(raw)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries


def pack_entries(entries: array[int]) -> bytes:
    """The opposite of `unpack_entries`."""
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()
