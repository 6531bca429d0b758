"""Streams and their indexes, found from the end of the file.

Source: "The .xz File Format" 1.2.1, 2 (streams, padding), 3 (blocks), 4 (index).
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import MOST_PIECES, Pieces
from tapcore import ImageFormatError, NotSupportedError

MAGIC: Final = b"\xfd7zXZ\0"
_FOOTER_MAGIC: Final = b"YZ"
HEADER_BYTES: Final = 12
"""Of a stream, and of its footer."""
_LARGEST_INDEX: Final = 18 * MOST_PIECES
_PIECE: Final = 64 << 10


class Block(NamedTuple):
    """A record of an index.

    Attributes:
        place: where the block begins, bytes.
        length: in the file without padding, bytes.
        content: bytes that it holds.
        flags: of its stream, two bytes: how it is checked.
    """

    place: int
    length: int
    content: int
    flags: bytes


def find_blocks(file: PackedFile) -> tuple[Pieces, list[bytes]]:
    """The blocks of all streams, and for each piece the flags of its stream.

    Raises:
        ImageFormatError: it is damaged, or something else.
        OSError: as the system says.
    """
    streams: list[list[Block]] = []
    end, left = file.size, MOST_PIECES
    while end:
        end = _without_padding(file, end)
        blocks, end = _stream_before(file, end, left)
        left -= len(blocks) + 1
        if left < 0:
            raise NotSupportedError(f"consists of more than {MOST_PIECES} compressed pieces")
        streams.append(blocks)
    pieces, flags = Pieces(), []
    for blocks in reversed(streams):
        for block in blocks:
            pieces.add(block.place, block.length, block.content)
            if block.content:
                flags.append(block.flags)
    return pieces, flags


def _without_padding(file: PackedFile, end: int) -> int:
    """Where the last stream before an offset ends."""
    last = end
    while True:
        start = max(end - _PIECE, 0)
        content = file.read(start, end - start).rstrip(b"\0")
        end = start + len(content)
        if content or not start:
            break
    if (last - end) % 4 or not end:
        raise ImageFormatError("is cut short, or damaged: it has no index at its end")
    return end


def _stream_before(file: PackedFile, end: int, most: int) -> tuple[list[Block], int]:
    """The blocks of the stream that ends there, and where it begins."""
    footer = file.read(end - HEADER_BYTES, HEADER_BYTES)
    if footer[10:] != _FOOTER_MAGIC or not _checked(footer[4:10], footer[:4]):
        raise ImageFormatError("is cut short, or damaged: it has no index at its end")
    index_length = 4 * (int.from_bytes(footer[4:8], "little") + 1)
    if index_length > _LARGEST_INDEX:
        raise NotSupportedError(f"consists of more than {MOST_PIECES} compressed pieces")
    index_at = end - HEADER_BYTES - index_length
    records = _records(file.read(index_at, index_length), most)
    start = index_at - HEADER_BYTES - sum(-(-length // 4) * 4 for length, _ in records)
    if start < 0:
        raise ImageFormatError("has a false index: its blocks begin before the file does")
    flags = footer[8:10]
    header = file.read(start, HEADER_BYTES)
    if header != stream_header(flags):
        raise ImageFormatError("has a false index: no stream begins where it says")
    blocks, at = [], start + HEADER_BYTES
    for length, content in records:
        blocks.append(Block(at, length, content, flags))
        at += -(-length // 4) * 4
    return blocks, start


def stream_header(flags: bytes) -> bytes:
    """With which a stream begins."""
    return MAGIC + flags + zlib.crc32(flags).to_bytes(4, "little")


def _checked(content: bytes, crc: bytes) -> bool:
    return zlib.crc32(content) == int.from_bytes(crc, "little")


def _records(index: bytes, most: int) -> list[tuple[int, int]]:
    """Length and content of each block."""
    if index[:1] != b"\0" or not _checked(index[:-4], index[-4:]):
        raise ImageFormatError("has a damaged index")
    count, at = _number(index, 1)
    if count > most or count > len(index) // 2:
        raise ImageFormatError(f"has a false index: {count} blocks")
    records = []
    for _ in range(count):
        length, at = _number(index, at)
        content, at = _number(index, at)
        records.append((length, content))
    if -(-at // 4) * 4 + 4 != len(index):
        raise ImageFormatError("has a damaged index")
    return records


def _number(content: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits (1.2), and where the next one begins."""
    value = 0
    for shift in range(0, 63, 7):
        byte = content[at] if at < len(content) else 0x80
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ImageFormatError("has a damaged index")
