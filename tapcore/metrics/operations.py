"""What is told apart: the operation, and the size class of a request."""

from __future__ import annotations

from typing import Final

OPERATIONS: Final = ("read", "write", "flush", "discard", "zero", "cache", "status", "other")
"""The first five are numbered as the engine numbers them. `other` is what no front end knows."""

CACHE: Final = 5
STATUS: Final = 6
OTHER: Final = 7

SIZE_BOUNDS: Final = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
"""Bytes: each class but the last has requests up to this length."""

SIZES: Final = ("4k", "16k", "64k", "256k", "1m", "more")
"""The names of the classes."""

SIZE_OF: Final = tuple(
    sum((1 << bits) > bound for bound in SIZE_BOUNDS) if bits else 0 for bits in range(66)
)
"""The class of a request of `length` bytes, by `(length - 1).bit_length()`."""


def size_class(length: int) -> int:
    """The number of a request's class.

    Args:
        length: bytes.
    """
    return SIZE_OF[(length - 1).bit_length()]
