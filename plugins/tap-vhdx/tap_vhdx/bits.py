"""Bitmaps, of which the lowest bit of a byte stands for its first sector."""

from __future__ import annotations


def is_set(bits: bytes, number: int) -> bool:
    """Whether a bit is 1."""
    return bool(bits[number >> 3] >> (number & 7) & 1)


def same_bits_until(bits: bytes, number: int, stop: int) -> int:
    """The first bit, up to `stop`, that is not as one before it is."""
    value = is_set(bits, number)
    at = number + 1
    while at < stop and at & 7:
        if is_set(bits, at) != value:
            return at
        at += 1
    between = bits[at >> 3 : stop >> 3]
    at += 8 * (len(between) - len(between.lstrip(b"\xff" if value else b"\0")))
    while at < stop and is_set(bits, at) == value:
        at += 1
    return min(at, stop)
