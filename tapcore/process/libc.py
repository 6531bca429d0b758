"""The C library, for what Python has no function of its own."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """With errno; looked up once, since that makes a class."""
    return ctypes.CDLL(None, use_errno=True)
