"""The content of single compressed grains."""

from __future__ import annotations

import os
from typing import Final

from tap_vmdk.sparse.markers import GRAIN_MARKER
from tapcore import ImageFile, ImageFormatError
from tapcore.deflate import inflate

_GUESS: Final = 0.55
"""A grain is fetched as if it were compressed to this share; where it is larger, twice."""


class Inflater:
    """Reads and inflates the grains of a file; threads may call it.

    Args:
        file: open.
        size: of a grain, bytes.
        markers: each grain is preceded by its sector and its compressed size.
    """

    def __init__(self, file: ImageFile, size: int, *, markers: bool) -> None:
        self._fd = file.meta_fd  # threads read by it
        self._size = size
        self._markers = markers
        self._first_read = max(int(size * _GUESS), 512) + GRAIN_MARKER.size

    def content(self, place: int, at: int) -> bytes:
        """The content of a grain; waits for the disk, changes nothing.

        Args:
            place: sector of the file where what is stored of it begins.
            at: its first sector on this file's disk.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        stored = os.pread(self._fd, self._first_read, place << 9)
        if not self._markers:
            return self._unmarked(place, stored)
        head = GRAIN_MARKER.size
        if not stored:
            raise ImageFormatError("its grain lies past the end of the file")
        if len(stored) < head:
            raise ImageFormatError("ends within a compressed grain")
        sector, length = GRAIN_MARKER.unpack_from(stored)
        if sector != at or not 0 < length <= 2 * self._size:
            raise ImageFormatError("has a damaged marker of a grain")
        missing = head + length - len(stored)
        if missing > 0:
            stored += os.pread(self._fd, missing, (place << 9) + len(stored))
            if len(stored) < head + length:
                raise ImageFormatError("ends within a compressed grain")
        return inflate(memoryview(stored)[head : head + length], self._size, wbits=15)

    def _unmarked(self, place: int, stored: bytes) -> bytes:
        rest = 2 * self._size - len(stored)
        stored += os.pread(self._fd, rest, (place << 9) + len(stored))
        return inflate(stored, self._size, wbits=15)
