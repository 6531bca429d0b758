"""Bits in bytes, the lowest bit of a byte first: which are set, and setting many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_SET: Final = re.compile(rb"\xff+|[\x01-\xfe]")


def _runs_of(byte: int) -> tuple[tuple[int, int], ...]:
    found = []
    at = 0
    while byte >> at:
        if byte >> at & 1:
            end = at
            while byte >> end & 1:
                end += 1
            found.append((at, end))
            at = end
        at += 1
    return tuple(found)


_BYTE_RUNS: Final = [_runs_of(byte) for byte in range(256)]


def set_runs(content: bytes) -> Iterator[tuple[int, int]]:
    """Runs of bits that are set, as (first bit, the one behind the last), in order.

    Neighbours are not always joined.
    """
    for match in _SET.finditer(content):
        first, end = match.span()
        byte = content[first]
        if byte == 0xFF:
            yield first << 3, end << 3
        else:
            for start, stop in _BYTE_RUNS[byte]:
                yield (first << 3) + start, (first << 3) + stop


def fill(content: bytearray, first: int, end: int) -> None:
    """Set the bits from `first` up to `end`, which lie in the content; at least one."""
    last = end - 1
    low, high = first >> 3, last >> 3
    head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
    if low == high:
        content[low] |= head & tail
        return
    content[low] |= head
    content[low + 1 : high] = b"\xff" * (high - low - 1)
    content[high] |= tail


def either(one: bytes | bytearray, other: bytes | bytearray) -> bytes:
    """The bits that are set in one of two contents of the same length."""
    both = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return both.to_bytes(len(one), "little")


def cut(content: bytes, bits: int) -> bytes:
    """The same content with all bits from number `bits` on cleared."""
    if bits >= len(content) << 3:
        return content
    whole = bits >> 3
    edge = bytes([content[whole] & ((1 << (bits & 7)) - 1)])
    return (content[:whole] + edge).ljust(len(content), b"\0")
