"""Small reads one after the other, out of one larger read: what a buffered file does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

WINDOW_BYTES: Final = 256 << 10

_SMALL: Final = WINDOW_BYTES // 4
"""Bytes of a read at most that a window is for."""


class Versioned(Protocol):
    """Something of which the content changes; `version` counts that."""

    version: int


class Window:
    """The content of a disk around the place where it is read.

    It is filled by a small read that begins where the last one ended. Whatever may change the
    content makes it void.

    Args:
        read_into: fills a buffer from an offset; returns the bytes read.
        source: whose content it is; None: it may change at any time, and nothing is kept.
    """

    __slots__ = ("_next", "_read_into", "_source", "_start", "_stop", "_version", "_view")

    def __init__(
        self, read_into: Callable[[int, memoryview], int], source: Versioned | None
    ) -> None:
        self._read_into = read_into
        self._source = source
        self._view = memoryview(b"")
        self._start = self._stop = 0
        self._version = -1
        self._next = -1

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at an offset; fewer at the end of the disk."""
        end = offset + length
        source = self._source
        if (
            self._start <= offset
            and end <= self._stop
            and source is not None
            and self._version == source.version
        ):
            self._next = end
            return self._view[offset - self._start : end - self._start].tobytes()
        if length > _SMALL or offset != self._next or source is None:
            self._next = end
            return self._read(offset, memoryview(bytearray(length))).tobytes()
        if not self._view:
            self._view = memoryview(bytearray(WINDOW_BYTES))
        self._stop = self._start = offset
        self._version, self._next = source.version, end
        self._stop += len(self._read(offset, self._view))
        return self._view[: min(end, self._stop) - offset].tobytes()

    def _read(self, offset: int, view: memoryview) -> memoryview:
        return view[: self._read_into(offset, view)]
