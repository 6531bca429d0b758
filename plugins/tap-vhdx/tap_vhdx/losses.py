"""Blocks that a file from a stranger is too short for, told in bounded time and memory."""

from __future__ import annotations

from typing import Final

from tap_vhdx.bat import CODING, ENTRY_BYTES, PARTIAL, PLACE, PRESENT, STATE, geometry_of
from tap_vhdx.headers import ReadAt
from tap_vhdx.layout import Layout
from tapcore import Finding, lost_content

_MOST_TABLE: Final = 16 << 20
"""Bytes of the table that are looked at."""


def losses_of(read: ReadAt, size: int, layout: Layout) -> list[Finding]:
    """Content that lies past the end of the file, wholly or in part.

    Args:
        read: reads the file.
        size: of it, bytes.
        layout: of it; where its log makes the file longer first, nothing is lost yet.
    """
    if layout.overlay.starts:
        return []
    disk, geometry = layout.disk, geometry_of(layout.disk)
    count = min(disk.bat_entries, _MOST_TABLE // ENTRY_BYTES)
    table = CODING.decode(read(layout.regions.bat.offset, count * ENTRY_BYTES))
    if max(table, default=0) + disk.block_size <= size:
        return []
    lost = 0
    for block in range(disk.blocks):
        number = geometry.entry(block)
        if number >= count:
            break
        entry = table[number]
        needed = min(disk.block_size, disk.size - block * disk.block_size)
        stored = entry & STATE in (PRESENT, PARTIAL)
        lost += stored and (entry & PLACE) + needed > size
    return lost_content("block", lost, "content is lost", partly=True)
