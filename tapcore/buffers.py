"""Page-aligned memory for requests, reused: no allocation on the fast path, fit for O_DIRECT."""

from __future__ import annotations

import mmap
from typing import Final

_MIN_BITS: Final = 12  # a page
_SLAB_BITS: Final = 18  # smaller classes are cut from slabs of this size
_KEEP_BYTES: Final = 16 << 20

_ZEROES_BYTES: Final = 1 << 20


def anonymous(size: int) -> memoryview:
    """Fresh private memory, page-aligned, all zeroes.

    Args:
        size: bytes.
    """
    return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


ZEROES: Final = anonymous(_ZEROES_BYTES)
"""1 MiB of zeroes to write from; nobody writes into it (so it costs no memory)."""


def fill_zeroes(buf: memoryview) -> None:
    """Set a whole buffer to zeroes."""
    size = len(buf)
    if size <= _ZEROES_BYTES:
        buf[:] = ZEROES[:size]
        return
    for start in range(0, size, _ZEROES_BYTES):
        stop = min(start + _ZEROES_BYTES, size)
        buf[start:stop] = ZEROES[: stop - start]


class BufferPool:
    """Buffers in classes of powers of two; the one given back last is taken first (it is warm)."""

    __slots__ = ("_free", "_kept")

    def __init__(self) -> None:
        self._free: list[list[memoryview]] = [[] for _ in range(64)]
        self._kept = 0

    def take(self, size: int) -> memoryview:
        """A buffer of at least `size` bytes, content undefined; slice it, give it back whole."""
        bits = (size - 1).bit_length()
        if bits < _MIN_BITS:
            bits = _MIN_BITS
        free = self._free[bits]
        try:
            buffer = free.pop()  # not asked first: disks in other threads take from it too
        except IndexError:
            pass
        else:
            if bits >= _SLAB_BITS:
                self._kept -= 1 << bits
            return buffer
        if bits >= _SLAB_BITS:
            return anonymous(1 << bits)
        slab = anonymous(1 << _SLAB_BITS)
        size = 1 << bits
        free.extend(slab[at : at + size] for at in range(size, len(slab), size))
        return slab[:size]

    def shelf(self, size: int) -> list[memoryview]:
        """Where short buffers of at least `size` bytes are taken from the end, as long as there are
        any: for who takes many. For long ones it is always empty.
        """
        bits = max((size - 1).bit_length(), _MIN_BITS)
        return self._free[bits] if bits < _SLAB_BITS else []

    def give_all(self, buffers: list[memoryview]) -> int:
        """Return many; returns how many bytes that were."""
        sizes = set(map(len, buffers))
        if len(sizes) == 1 and (size := sizes.pop()) < 1 << _SLAB_BITS:
            self._free[(size - 1).bit_length()] += buffers
            return size * len(buffers)
        for buffer in buffers:
            self.give(buffer)
        return sum(map(len, buffers))

    def give(self, buffer: memoryview) -> None:
        """Return what `take` gave; large buffers beyond a limit go back to the system."""
        size = len(buffer)
        bits = (size - 1).bit_length()
        if bits >= _SLAB_BITS:
            if self._kept + size > _KEEP_BYTES:
                return
            self._kept += size
        self._free[bits].append(buffer)


POOL: Final = BufferPool()
"""The process's pool; threads may share it, each with disks of its own."""


_TO_PAGE: Final = 4096 - 16
"""Bytes from where a bytearray of its own mapping begins to the next page."""


def long_bytearray(size: int) -> bytearray:
    """A bytearray for long reads, which begins at a page where the allocator maps its memory.

    There a bytearray begins 16 bytes behind a page. The kernel's copy from the page cache to such a
    place takes more than three times as long on some processors (AMD EPYC: 0.49 and 0.13 s a GiB).

    Args:
        size: bytes.
    """
    made = bytearray(size + _TO_PAGE)
    del made[:_TO_PAGE]  # moves its beginning, not its content
    return made
