"""The block map: for each block of the disk the number of its place, or that it has none.

It is read in pages. Zero is the number of a place here, so a page that lies in a hole of the file
says something, too.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import ClassVar, Final

from tap_vdi.header import Header, ReadAt
from tapcore import ImageFormatError
from tapcore.clusters import Coding, Table

FREE: Final = 0xFFFFFFFF
"""Nothing is stored: the parent's content, or zeroes."""
ZERO: Final = 0xFFFFFFFE
"""Nothing is stored: zeroes, whatever the parent holds."""

CODING: Final = Coding("I", "little")
PAGE_SHIFT: Final = 14
PAGE_BYTES: Final = 4 << PAGE_SHIFT
_MOST_AGAIN: Final = 1 << 16
"""Blocks that there may be beyond those that the file has room for: it is damaged, but small."""
_ALL_FREE: Final = b"\xff" * PAGE_BYTES


class Page(Table):
    """A part of the block map."""

    block_shift: ClassVar[int] = 7


def pages(header: Header) -> int:
    """How many pages the block map has."""
    return -(-header.blocks >> PAGE_SHIFT)


def page_place(header: Header, index: int) -> tuple[int, int]:
    """Where a page lies, and how long it is; bytes."""
    first = index << PAGE_SHIFT
    return header.map_at + 4 * first, min(PAGE_BYTES, 4 * (header.blocks - first))


def stored_blocks(header: Header, read: ReadAt, size: int) -> Iterator[tuple[int, int]]:
    """All blocks that have a place, with its number, in the order of the disk.

    Args:
        header: of the image.
        read: reads the file.
        size: of the file, bytes.

    Raises:
        ImageFormatError: many more blocks than the file can hold.
    """
    visits = PlaceVisits(header, size)
    for first, content in map_content(header, read):
        if content == _ALL_FREE[: len(content)]:
            continue
        for block, place in enumerate(CODING.decode(content), first):
            if place < ZERO:
                visits.visit(1)
                yield block, place


class PlaceVisits:
    """A bound for whoever walks through the map: a block map of gigabytes may lie in a hole of its
    file, and then name one and the same place for ever.

    Args:
        header: of the image.
        size: of the file, bytes.
    """

    __slots__ = ("_left",)

    def __init__(self, header: Header, size: int) -> None:
        self._left = places_there(header, size) + _MOST_AGAIN

    def visit(self, blocks: int) -> None:
        """So many blocks have places.

        Raises:
            ImageFormatError: there cannot be so many.
        """
        self._left -= blocks
        if self._left < 0:
            text = "is damaged: it has many more blocks than there is room for in the file"
            raise ImageFormatError(text, errno=errno.EIO)


def places_there(header: Header, size: int) -> int:
    """How many places a file has room for, a part of one counting.

    Args:
        header: of the image.
        size: of the file, bytes.
    """
    return max(-(-(size - header.data_at) // header.place_bytes), 0)


def map_content(header: Header, read: ReadAt) -> Iterator[tuple[int, bytes]]:
    """The block map as it is in the file: the first block of a page, and its bytes."""
    for index in range(pages(header)):
        yield index << PAGE_SHIFT, read(*page_place(header, index))
