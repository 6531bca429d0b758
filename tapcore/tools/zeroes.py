"""Finding zeroes and differences in memory, at the speed of memcmp."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

ZERO_BLOCK: Final = 4096
"""Granularity (bytes) in which zeroes inside data are left out: a file system's block."""

_WINDOW: Final = 1 << 20
_ZEROES: Final = memoryview(bytes(_WINDOW))


def is_zero(content: bytearray, length: int, start: int = 0) -> bool:
    """Whether `length` bytes from `start` on are all zero."""
    # bytearray.startswith compares in place; comparing memoryviews goes byte by byte
    while length > _WINDOW:
        if not content.startswith(_ZEROES, start):
            return False
        start += _WINDOW
        length -= _WINDOW
    return content.startswith(_ZEROES[:length], start)


def data_runs(
    content: bytearray,
    length: int,
    *,
    start: int = 0,
    unit: int = ZERO_BLOCK,
    first: int | None = None,
) -> Iterator[tuple[int, int]]:
    """The parts of a buffer that are not zero, in whole blocks, neighbours joined.

    Args:
        content: the buffer.
        length: where in it to stop, bytes.
        start: where in it to begin, bytes.
        unit: size of a block, bytes.
        first: bytes up to the end of the first block, where that is shorter.

    Yields:
        (start, end) in bytes; the last end may lie inside a block.
    """
    if is_zero(content, length - start, start):
        return
    for zero, end in _zero_blocks(content, start, length, unit, first or unit):
        if zero > start:
            yield start, zero
        start = end
    if start < length:
        yield start, length


def _zero_blocks(
    content: bytearray, start: int, length: int, unit: int, first: int
) -> Iterator[tuple[int, int]]:
    """The blocks that are all zero."""
    end = min(start + first, length)
    if first < unit:
        if is_zero(content, end - start, start):
            yield start, end
        start = end
    heads = content[start:length:unit]  # only a block that begins with a zero is looked at
    number = heads.find(0)
    while number >= 0:
        at = start + number * unit
        end = min(at + unit, length)
        if is_zero(content, end - at, at):
            yield at, end
        number = heads.find(0, number + 1)


def differing_runs(
    one: bytearray, other: bytearray, length: int, *, unit: int, first: int | None = None
) -> Iterator[tuple[int, int]]:
    """The parts in which two buffers differ, in whole blocks, neighbours joined.

    Args:
        one: a buffer.
        other: another.
        length: how many bytes of them count.
        unit: size of a block, bytes.
        first: bytes up to the end of the first block, where that is shorter.

    Yields:
        (start, end) in bytes; the last end may lie inside a block.
    """
    with memoryview(other) as view:
        if one.startswith(view[:length]):
            return
        begun = -1
        at, end = 0, min(first or unit, length)
        while at < length:
            same = one.startswith(view[at:end], at)
            if same and begun >= 0:
                yield begun, at
                begun = -1
            elif not same and begun < 0:
                begun = at
            at, end = end, min(end + unit, length)
        if begun >= 0:
            yield begun, length


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
