"""How a disk in xz's blocks is laid out, and how they are unpacked.

The library unpacks streams, not blocks: so it is shown a stream that begins with the block.
"""

from __future__ import annotations

import lzma
from typing import Final

from tap_zraw.apart import PiecesApart
from tap_zraw.forward import PART, ForwardOnly
from tap_zraw.kept import KeptParts
from tap_zraw.layout import LARGEST_PART, Layout
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tap_zraw.xz.blocks import find_blocks, stream_header
from tapcore import ImageFormatError

_MEMORY: Final = 160 << 20
"""Bytes that the library may take for a block: `xz -9` needs 65 MiB."""
_INPUT_BYTES: Final = 64 << 10


def _damaged(exc: lzma.LZMAError) -> ImageFormatError:
    return ImageFormatError(f"has a damaged block ({exc})")


def _decompressor(flags: bytes) -> lzma.LZMADecompressor:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    decompressor.decompress(stream_header(flags))
    return decompressor


class BlockForward:
    """Unpacks one block from front to back; see `Forward`.

    Args:
        file: that holds it.
        place: where it begins, bytes.
        length: in the file, bytes.
        flags: of its stream.
    """

    __slots__ = ("_at", "_decompressor", "_file", "_left")

    def __init__(self, file: PackedFile, place: int, length: int, flags: bytes) -> None:
        self._file = file
        self._at = place
        self._left = length
        self._decompressor = _decompressor(flags)

    def read(self, most: int) -> bytes:
        """See `Forward`."""
        decompressor = self._decompressor
        while True:
            packed = b""
            if decompressor.needs_input:
                packed = self._file.read(self._at, min(self._left, _INPUT_BYTES))
                self._at += len(packed)
                self._left -= len(packed)
                if not packed:
                    return b""
            try:
                content = decompressor.decompress(packed, most)
            except lzma.LZMAError as exc:
                raise _damaged(exc) from None
            if content:
                return content

    def copy(self) -> None:
        """The library cannot."""
        return None


def lay_out(file: PackedFile) -> tuple[Layout, Pieces]:
    """The layout of an open file.

    Raises:
        ImageFormatError: it is damaged, or something else.
        OSError: as the system says.
    """
    pieces, flags = find_blocks(file)

    def begin(index: int) -> BlockForward:
        return BlockForward(file, pieces.places[index], pieces.lengths[index], flags[index])

    if pieces.largest() > LARGEST_PART:
        return ForwardOnly(pieces, begin, KeptParts(PART, spooled=True)), pieces

    def unpack_block(index: int, packed: bytes, length: int) -> bytes:
        try:
            content = _decompressor(flags[index]).decompress(packed, length + 1)
        except lzma.LZMAError as exc:
            raise _damaged(exc) from None
        if len(content) != length:
            raise ImageFormatError("has a block that holds more or less than its index says")
        return content

    return PiecesApart(file, pieces, unpack_block), pieces
