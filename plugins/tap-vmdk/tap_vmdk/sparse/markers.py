"""The markers between the pieces of a stream ("Virtual Disk Format 5.0").

Numbers are little-endian, places and lengths in sectors of 512 bytes.
"""

from __future__ import annotations

import struct
from typing import Final

from tap_vmdk.sparse.entries import CODING
from tap_vmdk.sparse.header import SparseHeader
from tapcore.clusters import Numbers

MARKER_EOS: Final = 0
MARKER_TABLE: Final = 1
MARKER_DIRECTORY: Final = 2
MARKER_FOOTER: Final = 3
MARKER_PROGRESS: Final = 4
"""Tells who reads a stream as it comes that something still happens; it is followed by nothing."""

MARKER: Final = struct.Struct("<QII")
GRAIN_MARKER: Final = struct.Struct("<QI")
"""Before a compressed grain: its first sector on the disk, and how many bytes follow."""


def marker(kind: int, sectors: int) -> bytes:
    """The sector before metadata in a stream.

    Args:
        kind: `MARKER_*`.
        sectors: length of what follows it.
    """
    return MARKER.pack(sectors, 0, kind).ljust(512, b"\0")


def marked(kind: int, sectors: int, entries: Numbers) -> bytes:
    """Metadata in a stream, behind its marker; arguments as of `marker`, and its numbers."""
    return marker(kind, sectors) + CODING.encode(entries).ljust(sectors << 9, b"\0")


def is_marker(sector: bytes, kind: int) -> bool:
    """Whether a sector of a stream is a marker of a kind (`MARKER_*`)."""
    _, size, found = MARKER.unpack_from(sector)
    return bool(size == 0 and found == kind)


def grain_with_marker(sector: int, compressed: bytes) -> bytes:
    """A compressed grain as a stream has it, padded to whole sectors.

    Args:
        sector: the grain's first sector on the disk.
        compressed: its content, deflated with zlib's header.
    """
    content = GRAIN_MARKER.pack(sector, len(compressed)) + compressed
    return content.ljust(-(-len(content) // 512) * 512, b"\0")


def stream_end(header: SparseHeader, gd_offset: int) -> bytes:
    """What ends a stream: a marker, the header again with the directory's place, and an end mark.

    Args:
        header: the stream's header.
        gd_offset: where the grain directory lies, sectors.
    """
    end = header._replace(gd_offset=gd_offset)
    return marker(MARKER_FOOTER, 1) + end.pack() + marker(MARKER_EOS, 0)
