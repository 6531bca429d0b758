"""Bitmaps, of which the highest bit of a byte stands for its first sector."""

from __future__ import annotations

from tapcore.clusters import Numbers


def is_set(bits: Numbers, number: int) -> bool:
    """Whether a bit is 1."""
    return bool(bits[number >> 3] & 0x80 >> (number & 7))


def same_until(bits: Numbers, number: int, stop: int) -> int:
    """The first bit, up to `stop`, that is not as one before it is."""
    value = is_set(bits, number)
    at = number + 1
    while at < stop and at & 7:
        if is_set(bits, at) != value:
            return at
        at += 1
    between = bits[at >> 3 : stop >> 3].tobytes()
    at += 8 * (len(between) - len(between.lstrip(b"\xff" if value else b"\0")))
    while at < stop and is_set(bits, at) == value:
        at += 1
    return min(at, stop)


def all_set(bits: Numbers, first: int, stop: int) -> bool:
    """Whether a range of bits is 1; it is not empty."""
    return is_set(bits, first) and same_until(bits, first, stop) == stop


def with_ones(bits: Numbers, first: int, stop: int) -> tuple[int, bytes]:
    """Which bytes a bitmap has, from which one on, when a range of its bits is set."""
    start, end = first >> 3, (stop + 7) >> 3
    ones = (1 << stop - first) - 1 << 8 * end - stop
    old = int.from_bytes(bits[start:end].tobytes(), "big")
    return start, (old | ones).to_bytes(end - start, "big")


def with_zeroes(bits: Numbers, first: int, stop: int) -> tuple[int, bytes]:
    """The same when a range is cleared."""
    start, end = first >> 3, (stop + 7) >> 3
    ones = (1 << stop - first) - 1 << 8 * end - stop
    old = int.from_bytes(bits[start:end].tobytes(), "big")
    return start, (old & ~ones).to_bytes(end - start, "big")
