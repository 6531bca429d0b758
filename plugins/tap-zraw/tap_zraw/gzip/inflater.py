"""zlib by its own interface, for what Python's module does not show: where a block ends, and how to
begin in the middle of a stream.

Source: zlib.h (inflate with Z_BLOCK, inflatePrime, inflateSetDictionary).
"""

from __future__ import annotations

import ctypes
import zlib
from functools import cache
from typing import Final

WINDOW_BYTES: Final = 32 << 10
"""What whoever begins in the middle has to remember."""

_OUT_BYTES: Final = 64 << 10
"""That come out at a time; a block mostly has about as many."""

_OK, _STREAM_END, _NO_PROGRESS = 0, 1, -5
_UP_TO_BLOCK: Final = 5
_AT_BLOCK, _IN_LAST, _BITS = 128, 64, 7
"""Of `data_type`: a block is over, or a header; it is the last one; bits left of a byte."""


class _Stream(ctypes.Structure):
    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libz.so.1")


def is_there() -> bool:
    """Whether the library can be used."""
    try:
        return hasattr(_library(), "inflateGetDictionary")
    except OSError:
        return False


class Inflater:
    """Used as `zlib.decompressobj` is, and stops behind each block.

    Args:
        wbits: as of `zlib.decompressobj`.
        bits: of the byte before the first one that belong to the stream: how many, and which.
        window: the content before.

    Attributes:
        eof: the stream is over.
        left: the input that was not consumed.
        bits: at the beginning of a block: so many bits of the last byte belong to it; else -1.
    """

    def __init__(self, wbits: int, bits: tuple[int, int] = (0, 0), window: bytes = b"") -> None:
        self._stream = _Stream()
        self._out = ctypes.create_string_buffer(_OUT_BYTES)
        self._open = False
        self.eof = False
        self.left = b""
        self.bits = -1
        size = ctypes.sizeof(_Stream)
        at = ctypes.byref(self._stream)
        self._done(_library().inflateInit2_(at, wbits, zlib.ZLIB_VERSION.encode(), size))
        self._open = True
        if bits[0]:
            self._done(_library().inflatePrime(at, *bits))
        if window:
            self._done(_library().inflateSetDictionary(at, window, len(window)))

    def __del__(self) -> None:
        if self._open:
            self._open = False
            _library().inflateEnd(ctypes.byref(self._stream))

    def _done(self, result: int) -> None:
        if result not in (_OK, _STREAM_END, _NO_PROGRESS):
            said = self._stream.msg
            raise zlib.error(f"Error {result} while decompressing data: {(said or b'').decode()}")

    def decompress(self, packed: bytes, most: int) -> bytes:
        """What becomes of some input, `most` bytes of it at most; raises zlib.error."""
        stream, out = self._stream, self._out
        most = min(most, _OUT_BYTES)
        stream.next_in = ctypes.cast(ctypes.c_char_p(packed), ctypes.c_void_p)
        stream.avail_in = len(packed)
        stream.next_out, stream.avail_out = ctypes.addressof(out), most
        result = _library().inflate(ctypes.byref(stream), _UP_TO_BLOCK)
        self._done(result)
        self.eof = result == _STREAM_END
        self.left = packed[len(packed) - stream.avail_in :]
        told = stream.data_type
        self.bits = told & _BITS if told & _AT_BLOCK and not told & _IN_LAST else -1
        return ctypes.string_at(out, most - stream.avail_out)

    @property
    def unused_data(self) -> bytes:
        """As of `zlib.decompressobj`."""
        return self.left if self.eof else b""

    @property
    def unconsumed_tail(self) -> bytes:
        """The same."""
        return b"" if self.eof else self.left

    def window(self) -> bytes:
        """The content before, as much as is to be remembered."""
        found = ctypes.create_string_buffer(WINDOW_BYTES)
        length = ctypes.c_uint(0)
        at = ctypes.byref(self._stream)
        self._done(_library().inflateGetDictionary(at, found, ctypes.byref(length)))
        return found.raw[: length.value]
