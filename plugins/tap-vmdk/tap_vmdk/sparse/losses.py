"""What a sparse file from a stranger is too short for, told in bounded time and memory."""

from __future__ import annotations

import os
from typing import Final

from tap_vmdk.sparse.entries import CODING
from tap_vmdk.sparse.header import GD_AT_END, SparseHeader
from tapcore import Finding, lost_content

_MOST_TABLES: Final = 16 << 20
"""Bytes of grain tables that are looked at, and of the directory."""


def losses_of(fd: int, size: int, header: SparseHeader) -> list[Finding]:
    """Tables and grains that lie past the end of the file, by the first directory.

    Args:
        fd: the file, open for reading.
        size: of it, bytes.
        header: of it, checked; a stream's, whose directory lies at its end, says nothing of that.
    """
    if header.gd_offset == GD_AT_END:
        return []
    table_bytes = header.entries * 4
    length = min(header.tables * 4, _MOST_TABLES)
    where = header.gd_offset * 512
    if where + length > size:
        text = "its grain directory lies past the end of the file: all content is lost"
        return [Finding("note", text, "content-lost")]
    stored = 1 if header.compressed else (header.capacity % header.grain or header.grain) * 512
    lost = tables = 0
    left = _MOST_TABLES
    for place in sorted(set(CODING.decode(os.pread(fd, length, where))) - {0}):
        if place * 512 + table_bytes > size:
            tables += 1
        elif left >= table_bytes:
            left -= table_bytes
            raw = os.pread(fd, table_bytes, place * 512).ljust(table_bytes, b"\0")
            lost += sum(grain * 512 > size - stored for grain in CODING.decode(raw) if grain)
    return lost_content("grain table", tables, "what they map is lost") + lost_content(
        "grain", lost, "their content is lost", least=left < table_bytes
    )
