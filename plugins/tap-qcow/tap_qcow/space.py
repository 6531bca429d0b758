"""Space for what is new: always at the end of the file."""

from __future__ import annotations

import errno

from tap_qcow.layout import Geometry
from tap_qcow.xen import XEN_PAGE


class Space:
    """Where the next cluster or table goes.

    Args:
        geometry: of the image.
        end: of the file, bytes.
        paged: tables begin at whole pages: blktap reads its own past the page cache.

    Attributes:
        end: where the next cluster goes, at the earliest; bytes.
    """

    def __init__(self, geometry: Geometry, end: int, *, paged: bool) -> None:
        self._geometry = geometry
        self._paged = paged
        self.end = end

    def allocate(self, count: int) -> int:
        """Space for so many clusters in a row; returns its byte offset.

        Raises:
            OSError: the file would become too long.
        """
        start = self._geometry.align(self.end)
        return self._take(start, count << self._geometry.cluster_bits)

    def allocate_table(self) -> int:
        """Space for an L2 table."""
        start = self._geometry.align(self.end)
        if self._paged:
            start = -(-start // XEN_PAGE) * XEN_PAGE
        return self._take(start, self._geometry.table_bytes)

    def allocate_compressed(self, length: int) -> int:
        """Space for compressed clusters, which need not be aligned; `length` in bytes."""
        if self.end + length > self._geometry.compressed_limit:
            raise OSError(errno.EFBIG, "compressed clusters cannot lie so far in the file")
        return self._take(self.end, length)

    def _take(self, start: int, length: int) -> int:
        if start + length >= 1 << 63:
            raise OSError(errno.EFBIG, "the file would become too long")
        self.end = start + length
        return start
