"""The seek table: in a skippable frame at the end of a file it tells where each frame begins.

Source: "Zstandard Seekable Format" 0.1.0 (zstd, contrib/seekable_format). Numbers are
little-endian.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable
from typing import Final

from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import MOST_PIECES, Pieces
from tapcore import ImageFormatError, NotSupportedError

_FRAME_MAGIC: Final = 0x184D2A5E
_MAGIC: Final = 0x8F92EAB1
_HEAD: Final = struct.Struct("<II")
"""Magic and length of the skippable frame."""
_FOOTER: Final = struct.Struct("<IBI")
"""Number of frames, what the table has, magic."""
_CHECKSUMS: Final = 0x80
_RESERVED: Final = 0x7C
MOST_FRAME_BYTES: Final = 1 << 30
"""Of content in a frame."""


def read_seek_table(file: PackedFile) -> Pieces | None:
    """The pieces of a file that has such a table at its end; None where it has none.

    Raises:
        ImageFormatError: it is false.
        OSError: as the system says.
    """
    least = _HEAD.size + _FOOTER.size
    if file.size < least:
        return None
    count, has, magic = _FOOTER.unpack(file.read(file.size - _FOOTER.size, _FOOTER.size))
    if magic != _MAGIC:
        return None
    if has & _RESERVED:
        raise NotSupportedError("has a seek table of a newer kind than is known")
    if count > MOST_PIECES:
        raise NotSupportedError(f"consists of more than {MOST_PIECES} compressed pieces")
    width = 12 if has & _CHECKSUMS else 8
    length = least + width * count
    start = file.size - length
    if start < 0 or file.read(start, _HEAD.size) != _HEAD.pack(_FRAME_MAGIC, length - 8):
        raise ImageFormatError("has a false seek table: its frame is not where it has to be")
    return _pieces(file.read(start + _HEAD.size, width * count), width // 4, start)


def _pieces(table: bytes, words: int, end: int) -> Pieces:
    entries = array("I")
    entries.frombytes(table)
    if sys.byteorder == "big":
        entries.byteswap()
    pieces, place = Pieces.in_a_row(entries[0::words], entries[1::words])
    if place != end:
        raise ImageFormatError(
            f"has a false seek table: its frames end at {place:#x}, and it begins at {end:#x}"
        )
    return pieces


def seek_table(frames: Iterable[tuple[int, int]]) -> bytes:
    """The skippable frame that tells of frames.

    Args:
        frames: bytes in the file and bytes of content of each, less than 4 GiB.
    """
    entries = array("I")
    for frame in frames:
        entries.extend(frame)
    if sys.byteorder == "big":
        entries.byteswap()
    table = entries.tobytes() + _FOOTER.pack(len(entries) // 2, 0, _MAGIC)
    return _HEAD.pack(_FRAME_MAGIC, len(table)) + table
