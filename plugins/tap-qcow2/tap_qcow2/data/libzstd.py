"""The C library of zstd, for frames that are decompressed to where they are wanted.

Python's modules make a decompressor for each frame, 160 KiB, and an object for its content, which
is then copied: for clusters of 64 KiB as much work as to decompress them.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

_NAME: Final = "libzstd.so.1"

_contexts: list[int] = []
"""That no thread uses now: as many as have ever been at it at once."""


class _Library:
    """Its functions; the first holds on to the interpreter's lock, as it only looks at headers."""

    def __init__(self) -> None:
        self.frame_size = _typed(ctypes.PyDLL(_NAME).ZSTD_findFrameCompressedSize, 1)
        library = ctypes.CDLL(_NAME)
        self.decompress = _typed(library.ZSTD_decompressDCtx, 2, ctypes.c_void_p)
        self.new_context = library.ZSTD_createDCtx
        self.new_context.argtypes, self.new_context.restype = (), ctypes.c_void_p


def _typed(function: Any, buffers: int, *first: Any) -> Any:
    """Of a function that takes so many buffers, each with its size, and returns a size."""
    function.argtypes = (*first, *(ctypes.c_void_p, ctypes.c_size_t) * buffers)
    function.restype = ctypes.c_size_t
    return function


@functools.cache
def _library() -> _Library | None:
    try:
        return _Library()
    except (OSError, AttributeError):
        return None


def is_there() -> bool:
    """Whether this machine has it."""
    return _library() is not None


def decompress_into(stream: bytes, view: memoryview) -> bool:
    """Decompress a frame; what follows it is not part of it. Other threads run meanwhile.

    Args:
        stream: begins with the frame.
        view: gets the content, and is filled by it.

    Returns:
        False where the frame is damaged, or holds more or less than that.
    """
    library = _library()
    assert library is not None
    size = library.frame_size(stream, len(stream))
    if size > len(stream):  # an error, as the library says it
        return False
    try:
        context = _contexts.pop()
    except IndexError:
        context = library.new_context()
        if context is None:  # no memory
            return False
    start = ctypes.byref(ctypes.c_char.from_buffer(view))
    filled = library.decompress(context, start, len(view), stream, size) == len(view)
    _contexts.append(context)
    return bool(filled)
