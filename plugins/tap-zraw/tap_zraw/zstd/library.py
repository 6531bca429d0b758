"""Frames of zstd, unpacked by Python's module for it."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import ModuleType
from typing import Any, Final

from tap_zraw.packedfile import PackedFile
from tap_zraw.zstd.frames import read_frame_header
from tapcore import ImageFormatError
from tapcore.zstd import zstd_module

_WINDOW_LOG: Final = 27
"""Of the largest window that `zstd -d` takes without being asked: 128 MiB."""
_LARGE_WINDOW: Final = 8 << 20
_INPUT_BYTES: Final = 64 << 10

_large = threading.Lock()
"""Held while a piece with a large window is unpacked."""


def library() -> ModuleType:
    """The module.

    Raises:
        NotSupportedError: there is none; the text says what to install.
    """
    return zstd_module("zstd needs a package that is not installed: pip install 'tap-zraw[zstd]'")


def _decompressor() -> Any:
    zstd = library()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def unpack_frame(_index: int, packed: bytes, length: int) -> bytes:
    """The content of one frame.

    Args:
        _index: of the frame.
        packed: the frame, and nothing else.
        length: bytes that it has to hold.

    Raises:
        ImageFormatError: it is damaged, or holds something else.
    """
    header = read_frame_header(packed[:18])
    if header is None or header.content not in (None, length):
        raise ImageFormatError("has a false index: no frame of this size is there")
    with _large if header.window > _LARGE_WINDOW else nullcontext():
        try:
            decompressor = _decompressor()
            content: bytes = decompressor.decompress(packed, length + 1)
        except library().ZstdError as exc:
            raise ImageFormatError(f"has a damaged frame ({exc})") from None
    if len(content) != length or not decompressor.eof or decompressor.unused_data:
        raise ImageFormatError("has a frame that holds more or less than its index says")
    return content


class FrameForward:
    """Unpacks one frame from front to back; see `Forward`.

    Args:
        file: that holds it.
        place: where it begins, bytes.
    """

    __slots__ = ("_at", "_decompressor", "_file")

    def __init__(self, file: PackedFile, place: int) -> None:
        self._file = file
        self._at = place
        self._decompressor = _decompressor()

    def read(self, most: int) -> bytes:
        """See `Forward`."""
        decompressor = self._decompressor
        while not decompressor.eof:
            packed = b""
            if decompressor.needs_input:
                packed = self._file.some(self._at, _INPUT_BYTES)
                if not packed:
                    raise ImageFormatError("is cut short: its last frame has no end")
                self._at += len(packed)
            try:
                content: bytes = decompressor.decompress(packed, most)
            except library().ZstdError as exc:
                raise ImageFormatError(f"has a damaged frame ({exc})") from None
            if content:
                return content
        return b""

    def copy(self) -> None:
        """The library cannot."""
        return None
