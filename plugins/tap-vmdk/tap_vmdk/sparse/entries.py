"""Entries of grain tables and directories.

Whatever the kind of file, an entry in memory is the sector of the file where the grain begins, 0
for a hole, or 1 for zeroes.
"""

from __future__ import annotations

from typing import Final

from tapcore.clusters import Coding

HOLE: Final = 0
ZERO: Final = 1
LAST_SECTOR: Final = 1 << 32
"""An entry of a hosted sparse file has 32 bits."""

CODING: Final = Coding("I", "little")
"""Of the entries of a hosted or COWD file."""
