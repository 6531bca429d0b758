"""zstd: Python's module for it, and the C library for frames that are wanted in a certain place.

The module makes a decompressor for each frame, 160 KiB, and an object for its content, which is
then copied: for clusters of 64 KiB as much work as to decompress them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from tapcore.errors import NotSupportedError

_NAME: Final = "libzstd.so.1"

_contexts: list[int] = []
"""That no thread uses now: as many as have ever been at it at once."""


@functools.cache
def zstd_module(needs: str) -> ModuleType:
    """`compression.zstd` of Python 3.14, or its backport.

    Args:
        needs: who needs it, and how to install it, as an error says it.

    Raises:
        NotSupportedError: there is none; with that text.
    """
    try:
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            from backports import zstd  # type: ignore[no-redef,unused-ignore]
    except ImportError:
        raise NotSupportedError(needs) from None
    module: ModuleType = zstd
    return module


class _Library:
    """Its functions; the first holds on to the interpreter's lock, as it only looks at headers."""

    def __init__(self) -> None:
        import ctypes

        def typed(function: Any, buffers: int, *first: Any) -> Any:
            """Of a function that takes so many buffers, each with its size, and returns a size."""
            function.argtypes = (*first, *(ctypes.c_void_p, ctypes.c_size_t) * buffers)
            function.restype = ctypes.c_size_t
            return function

        self.frame_size = typed(ctypes.PyDLL(_NAME).ZSTD_findFrameCompressedSize, 1)
        library = ctypes.CDLL(_NAME)
        self.decompress = typed(library.ZSTD_decompressDCtx, 2, ctypes.c_void_p)
        self.new_context = library.ZSTD_createDCtx
        self.new_context.argtypes, self.new_context.restype = (), ctypes.c_void_p

        def address(view: memoryview) -> Any:
            return ctypes.byref(ctypes.c_char.from_buffer(view))

        self.address = address


@functools.cache
def _library() -> _Library | None:
    try:
        return _Library()
    except (ImportError, OSError, AttributeError):  # a Python without ctypes, too
        return None


def into_place() -> Callable[[bytes, memoryview], bool] | None:
    """`decompress_into`, where this machine has the library."""
    return None if _library() is None else decompress_into


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
    start = library.address(view)
    filled = library.decompress(context, start, len(view), stream, size) == len(view)
    _contexts.append(context)
    return bool(filled)
