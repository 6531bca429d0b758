"""Where in a gzip file a decoder can begin: the ends of blocks, with the content before each.

They are found while all of it is unpacked once, and can be kept in a file (see `beside`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from tap_zraw.beside import Index
from tap_zraw.forward import PART
from tap_zraw.gzip.inflater import WINDOW_BYTES, Inflater
from tap_zraw.gzip.members import WITH_HEADER, MembersForward
from tap_zraw.packedfile import PackedFile
from tapcore import ImageFormatError

MOST_POINTS: Final = 1024
"""Of one file; their content is in memory while they are looked for, 32 MiB of it at most."""

_POINT: Final = struct.Struct("<QQBQI")
"""Where on the disk and in the file it is, the bits of the byte before that belong to it, and where
the content before is kept, with its length there."""
_RAW: Final = -15
_TRAILER_BYTES: Final = 8


@attrs.frozen
class Point:
    """A place where a decoder can begin.

    Attributes:
        at: on the disk, bytes.
        place: of the first whole byte in the file.
        bits: of the byte before it that belong to it.
        window: gives the content before, compressed.
    """

    at: int
    place: int
    bits: int
    window: Callable[[], bytes]


class Start:
    """A point as a state that was kept (see `Forward`): copies of it go on from there.

    Args:
        file: that holds the disk.
        point: the one.
    """

    __slots__ = ("_file", "_point")

    def __init__(self, file: PackedFile, point: Point) -> None:
        self._file = file
        self._point = point

    def read(self, most: int) -> bytes:
        """Never asked: copies are."""
        raise AssertionError("a point does not go on by itself")

    def copy(self) -> MembersForward:
        """A decoder; raises ImageFormatError where the index is false."""
        point, file = self._point, self._file
        try:
            window = zlib.decompressobj().decompress(point.window(), WINDOW_BYTES)
            bits = 0
            if point.bits:
                bits = file.read(point.place - 1, 1)[0] >> 8 - point.bits
            decompressor = Inflater(_RAW, (point.bits, bits), window)
        except zlib.error as exc:
            raise ImageFormatError(f"has a false index ({exc})") from None
        return MembersForward(file, point.place, decompressor, trailer=_TRAILER_BYTES)


class FindingForward(MembersForward):
    """Unpacks all of a file, and notes points.

    Args:
        file: the one.

    Attributes:
        points: in the order of the disk.
    """

    __slots__ = ("_done", "_every", "points")

    def __init__(self, file: PackedFile) -> None:
        super().__init__(file)
        self.points: list[Point] = []
        self._every = PART
        self._done = 0

    def _begin(self) -> Inflater:
        return Inflater(WITH_HEADER)

    def read(self, most: int) -> bytes:
        """See `Forward`."""
        content = super().read(most)
        self._done += len(content)
        decompressor = self._decompressor
        assert isinstance(decompressor, Inflater)
        last = self.points[-1].at if self.points else 0
        if decompressor.bits >= 0 and self._done - last >= self._every:
            window = zlib.compress(decompressor.window(), 1)
            self.points.append(Point(self._done, self._at, decompressor.bits, lambda: window))
            if len(self.points) == MOST_POINTS:
                del self.points[::2]
                self._every *= 2
        return content


def pack_points(points: list[Point]) -> tuple[bytes, Iterator[bytes]]:
    """The table of points for an index, and what follows its tables."""
    table, at = bytearray(), 0
    for point in points:
        length = len(point.window())
        table += _POINT.pack(point.at, point.place, point.bits, at, length)
        at += length
    return bytes(table), (point.window() for point in points)


def unpack_points(table: bytes, index: Index) -> list[Point]:
    """The points of an index; raises ValueError where there can be no such."""

    def window(at: int, length: int) -> Callable[[], bytes]:
        return lambda: index.rest(at, length)

    if len(table) % _POINT.size:
        raise ValueError("a table has another length than it can have")
    points = []
    for at, place, bits, where, length in _POINT.iter_unpack(table):
        if bits > 7 or length > 2 * WINDOW_BYTES:
            raise ValueError("a decoder cannot begin there")
        points.append(Point(at, place, bits, window(where, length)))
    return points
