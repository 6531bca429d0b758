"""The C library, for what Python has no function of its own."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def libc() -> ctypes.CDLL:
    """With errno; looked up once, since that makes a class."""
    return ctypes.CDLL(None, use_errno=True)


def typed_function(*names: str) -> Any:
    """A function of the library that gets types: another object each time, so nobody else's change.

    Args:
        names: the first that the library has is meant.

    Raises:
        AttributeError: it has none of them.
    """
    *others, last = names
    for name in others:
        try:
            return libc()[name]
        except AttributeError:
            continue
    return libc()[last]
