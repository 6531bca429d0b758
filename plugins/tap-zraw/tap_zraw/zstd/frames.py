"""Frames, found by their headers and those of their blocks, without unpacking.

Source: RFC 8878, 3.1.1 (frames), 3.1.1.1 (frame header), 3.1.1.2 (blocks), 3.1.2 (skippable ones).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs
from attrs import evolve

from tap_zraw.packedfile import PackedFile
from tapcore import ImageFormatError, NotSupportedError

MAGIC: Final = b"\x28\xb5\x2f\xfd"
SKIPPABLE: Final = 0x184D2A50
"""And the fifteen numbers after it."""
LARGEST_HEADER: Final = 18
_BLOCK_BYTES: Final = 128 << 10
_RAW, _RLE, _RESERVED = 0, 1, 3
_RLE_BYTES: Final = 4
"""Of a block that is one byte, so many times."""
MOST_BLOCKS: Final = 1 << 23
"""Of one file that are looked at: a disk of 1 TiB in one frame."""
_FRAME_COST: Final = 32
"""A frame takes as long as so many blocks."""
_ALIKE: Final = 8
"""log2 of how many blocks, or frames, that are the same take as long as one to be looked at."""
_SHORT_FRAME: Final = 4 << 10
"""Bytes in the file of one that may be repeated: zeroes, of 32 MiB and less."""


@attrs.frozen
class FrameHeader:
    """What a frame says of itself.

    Attributes:
        length: of the header, bytes.
        content: bytes that the frame holds; None: it does not say.
        window: bytes that whoever unpacks it has to remember.
        checksum: four bytes of it follow the last block.
    """

    length: int
    content: int | None
    window: int
    checksum: bool


@attrs.frozen
class Frame:
    """A frame in the file, or several that are the same, one behind the other.

    Attributes:
        place: where the first begins, bytes.
        length: of each in the file, bytes.
        content: bytes that each holds; None: it does not say.
        most: bytes that each can hold.
        skippable: it is for somebody else, and holds nothing.
        count: of frames.
    """

    place: int
    length: int
    content: int | None
    most: int
    skippable: bool = False
    count: int = 1


def read_frame_header(head: bytes) -> FrameHeader | None:
    """The header with which bytes begin; None where no frame does."""
    if len(head) < 6 or not head.startswith(MAGIC):
        return None
    flags = head[4]
    single = flags >> 5 & 1
    at = 5
    window = 0
    if not single:
        base = 1 << 10 + (head[at] >> 3)
        window = base + (base >> 3) * (head[at] & 7)
        at += 1
    at += (0, 1, 2, 4)[flags & 3]  # a dictionary
    width = (single, 2, 4, 8)[flags >> 6]
    content = None
    if width:
        content = int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)
    if len(head) < at + width:
        return None
    return FrameHeader(at + width, content, window or content or 0, bool(flags & 4))


def frames_of(file: PackedFile) -> Iterator[Frame]:
    """All frames of a file.

    Raises:
        ImageFormatError: something else follows, or it is cut short.
        NotSupportedError: there are too many blocks.
        OSError: as the system says.
    """
    at, left = 0, MOST_BLOCKS
    while at < file.size:
        frame, blocks = _frame_at(file, at, left)
        if frame.length <= _SHORT_FRAME:
            frame = evolve(frame, count=1 + file.repeats(at, frame.length, left << _ALIKE))
        yield frame
        at += frame.length * frame.count
        left -= blocks + _FRAME_COST + (frame.count * _FRAME_COST >> _ALIKE)
        if left <= 0:
            raise _too_many()


def _frame_at(file: PackedFile, at: int, most: int) -> tuple[Frame, int]:
    head = file.near(at, LARGEST_HEADER)
    if len(head) >= 8 and int.from_bytes(head[:4], "little") & ~15 == SKIPPABLE:
        length = 8 + int.from_bytes(head[4:8], "little")
        if at + length > file.size:
            raise _cut_short(at)
        return Frame(at, length, 0, 0, skippable=True), 1
    header = read_frame_header(head)
    if header is None:
        if at + LARGEST_HEADER > file.size and MAGIC.startswith(head[:4]):
            raise _cut_short(at)
        raise ImageFormatError(f"holds something else than zstd's frames, at offset {at:#x}")
    end, content, blocks = _blocks(file, at + header.length, most)
    end += 4 if header.checksum else 0
    if end > file.size:
        raise _cut_short(at)
    return Frame(at, end - at, header.content, content), blocks


def _blocks(file: PackedFile, at: int, most: int) -> tuple[int, int, int]:
    """Where the blocks end that begin there, what they can hold, and how many they count for."""
    content = count = 0
    before = b""
    while count < most:
        count += 1
        head = file.near(at, _RLE_BYTES)
        if len(head) < 3:
            raise _cut_short(at)
        word = int.from_bytes(head[:3], "little")
        kind, size = word >> 1 & 3, word >> 3
        if kind == _RESERVED or size > _BLOCK_BYTES:
            raise ImageFormatError(f"has a damaged frame, at offset {at:#x}")
        at += 3 + (1 if kind == _RLE else size)
        content += size if kind in (_RAW, _RLE) else _BLOCK_BYTES
        if word & 1:
            return at, content, count
        if kind == _RLE and head == before:
            again = file.repeats(at - _RLE_BYTES, _RLE_BYTES, (most - count) << _ALIKE)
            at, content = at + again * _RLE_BYTES, content + again * size
            count += again >> _ALIKE
        before = head if kind == _RLE else b""
    raise _too_many()


def _too_many() -> NotSupportedError:
    return NotSupportedError(
        f"has no seek table, and consists of more than {MOST_BLOCKS} blocks: unpack it first"
    )


def _cut_short(at: int) -> ImageFormatError:
    return ImageFormatError(f"is cut short: the frame at offset {at:#x} has no end")
