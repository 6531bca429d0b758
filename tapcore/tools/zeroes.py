"""Finding zeroes in memory, at the speed of memcmp."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

ZERO_BLOCK: Final = 4096
"""Granularity (bytes) in which zeroes inside data are left out: a file system's block."""

_ZEROES: Final = memoryview(bytes(1 << 20))


def is_zero(content: bytearray, length: int) -> bool:
    """Whether the first `length` bytes (at most 1 MiB) are all zero."""
    # bytearray.startswith compares in place; comparing memoryviews goes byte by byte
    return content.startswith(_ZEROES[:length])


def data_runs(content: bytearray, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a buffer that are not zero, in whole blocks, neighbours joined.

    Args:
        content: the buffer.
        length: how many bytes of it count, at most 1 MiB.

    Yields:
        (start, end) in bytes; the last end may lie inside a block.
    """
    if is_zero(content, length):
        return
    start = 0
    for zero in _zero_blocks(content, length):
        if zero > start:
            yield start, zero
        start = zero + ZERO_BLOCK
    if start < length:
        yield start, length


def _zero_blocks(content: bytearray, length: int) -> Iterator[int]:
    """Offsets of the blocks that are all zero."""
    heads = content[:length:ZERO_BLOCK]  # only a block that begins with a zero is looked at
    number = heads.find(0)
    while number >= 0:
        at = number * ZERO_BLOCK
        if content.startswith(_ZEROES[: min(ZERO_BLOCK, length - at)], at):
            yield at
        number = heads.find(0, number + 1)


def first_difference(one: bytearray, other: bytearray, length: int) -> int | None:
    """Where two buffers of `length` bytes differ first; None where they are equal."""
    view = memoryview(other)
    if one.startswith(view[:length]):
        return None
    same, differs = 0, length  # [0, same) is equal, [0, differs) is not
    while differs - same > 1:
        middle = (same + differs) // 2
        if one.startswith(view[same:middle], same):
            same = middle
        else:
            differs = middle
    return same


def first_nonzero(content: bytearray, length: int) -> int | None:
    """Where the first byte that is not zero lies; None where all are zero."""
    if is_zero(content, length):
        return None
    return length - len(content[:length].lstrip(b"\0"))
