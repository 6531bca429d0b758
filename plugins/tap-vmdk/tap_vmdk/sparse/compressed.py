"""Grains that are stored compressed: where they lie, and their content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import ClassVar, Final

from tap_vmdk.sparse.grainmap import GrainMap
from tap_vmdk.sparse.graintable import GrainTable
from tap_vmdk.sparse.layout import Layout
from tap_vmdk.sparse.markers import GRAIN_MARKER
from tapcore import DiskDriver, ImageFile, ImageFormatError, TapError, clusters
from tapcore.clusters import PACKED, Run
from tapcore.deflate import inflate

_GUESS: Final = 0.55
"""A grain is fetched as if it were compressed to this share; where it is larger, twice."""
_PLACE_BITS: Final = 32
_SPREAD: Final = 2
"""Grains are fetched together where that is at most so many times their content."""


class CompressedMap(GrainMap):
    """The map of a sparse file of compressed grains.

    Args:
        dd: the disk that it is a part of.
        file: open.
        layout: of it.
        markers: each grain is preceded by its sector and its compressed size.
    """

    shows_holes: ClassVar[bool] = False

    def __init__(
        self, dd: DiskDriver, file: ImageFile, layout: Layout, *, markers: bool = True
    ) -> None:
        super().__init__(dd, file, layout)
        self.unpacker = Inflater(file, layout, markers=markers)

    def place(self, sector: int, nb_sectors: int) -> int:
        """Nothing lies plain."""
        return clusters.ASK

    def run_in(self, table: GrainTable, sector: int, stop: int) -> Run:
        """Compressed grains one by one."""
        run = super().run_in(table, sector, stop)
        grain_end = (sector | self.grain_mask) + 1
        return run.upto(grain_end) if run.kind == PACKED else run

    def _stored(self, place: int, sector: int, length: int) -> Run:
        first = sector & ~self.grain_mask  # the marker of a grain has to say so, too
        return Run(PACKED, sector, length, first << _PLACE_BITS | place)


class Inflater:
    """Reads and inflates the grains of a file; threads may call it.

    Args:
        file: open.
        layout: of it.
        markers: each grain is preceded by its sector and its compressed size.
    """

    def __init__(self, file: ImageFile, layout: Layout, *, markers: bool) -> None:
        self._fd = file.meta_fd  # threads read by it
        self._size = size = layout.grain << 9
        self._end = layout.capacity
        self._markers = markers
        self._first_read = max(int(size * _GUESS), 512) + GRAIN_MARKER.size

    def missing(self, token: int) -> bool:
        """The map tells that already: no entry points past the end of the file."""
        return False

    def unpack_now(self, token: int) -> None:
        """Never."""

    def unpack(self, token: int) -> bytes:
        """The content of a grain; waits for the disk, changes nothing.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        return self._unpack(token, b"")

    def unpack_many(self, tokens: Sequence[int]) -> Iterator[bytes | Exception]:
        """The contents of grains, or why one has none; read together where they lie together."""
        places = [token & (1 << _PLACE_BITS) - 1 for token in tokens]
        start = min(places) << 9
        length = (max(places) << 9) + self._first_read - start
        content = b""
        if len(places) > 1 and length <= _SPREAD * self._size * len(places):
            with suppress(OSError):  # is met, and told, once more
                content = self._read(start, length)
        view = memoryview(content)
        for token, place in zip(tokens, places, strict=True):
            try:
                yield self._unpack(token, view[(place << 9) - start :])
            except (TapError, OSError) as exc:
                yield exc

    def _unpack(self, token: int, stored: bytes | memoryview) -> bytes:
        """As `unpack`, of which the file's content is known, or some of it, or nothing."""
        first, place = token >> _PLACE_BITS, token & (1 << _PLACE_BITS) - 1
        try:
            content = self._content(place, first, stored)
        except ImageFormatError as exc:
            raise ImageFormatError(f"{exc.message}, at sector {place} of the file") from None
        if len(content) < min(self._size, (self._end - first) << 9):
            raise ImageFormatError(f"its grain, at sector {place} of the file, is too short")
        return content.ljust(self._size, b"\0")  # the disk ends in the last one

    def _content(self, place: int, first: int, stored: bytes | memoryview) -> bytes:
        if not self._markers:
            return self._unmarked(place, bytes(stored[: 2 * self._size]))
        head = GRAIN_MARKER.size
        if len(stored) < head:
            stored = self._read(place << 9, self._first_read)
        if not stored:
            raise ImageFormatError("its grain lies past the end of the file")
        if len(stored) < head:
            raise ImageFormatError("ends within a compressed grain")
        sector, length = GRAIN_MARKER.unpack_from(stored)
        if sector != first or not 0 < length <= 2 * self._size:
            raise ImageFormatError("has a damaged marker of a grain")
        missing = head + length - len(stored)
        if missing > 0:
            stored = bytes(stored) + self._read((place << 9) + len(stored), missing)
            if len(stored) < head + length:
                raise ImageFormatError("ends within a compressed grain")
        return inflate(memoryview(stored)[head : head + length], self._size, wbits=15)

    def _read(self, offset: int, length: int) -> bytes:
        """So many bytes, or as many as the file has; some file systems give less at a time."""
        content = b""
        while len(content) < length:
            part = os.pread(self._fd, length - len(content), offset + len(content))
            if not part:
                break
            content += part
        return content

    def _unmarked(self, place: int, stored: bytes) -> bytes:
        rest = 2 * self._size - len(stored)
        if rest:
            stored += self._read((place << 9) + len(stored), rest)
        return inflate(stored, self._size, wbits=15)
