"""New refcount structures, beside the old ones, and the header's switch to them.

Nothing that is, or might be, in use is overwritten, and until the header is written the old
structures stand: so a crash on the way changes nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tap_qcow2.check.comparison import Comparison
from tap_qcow2.check.referencecounts import Counts
from tap_qcow2.ondisk import bigendian, layout
from tapcore import ImageFormatError

if TYPE_CHECKING:
    from tap_qcow2.image import Image


class FreeSpace:
    """Clusters that nothing refers to, for what a repair writes anew.

    They are taken from behind the file's end; on a device, which does not grow, from behind the
    last cluster in use, and then from wherever they are proven to be free.

    Args:
        image: open for writing.
        counts: of all references; what is taken is free in them, and to be added by the caller.
        end: the cluster behind the last one that is in use.
        claimed: clusters that tables say are theirs, though the file does not reach so far: (first,
            the one behind the last). What is written there would become a part of them.
    """

    def __init__(
        self, image: Image, counts: Counts, end: int, claimed: Sequence[tuple[int, int]] = ()
    ) -> None:
        self._image = image
        self._counts = counts
        self._end = end
        self._claimed = claimed

    def find(self, count: int) -> int:
        """The first of `count` free clusters side by side, which the file has.

        Raises:
            OSError: there are none.
        """
        file, geometry = self._image.file, self._image.geometry
        for start in (geometry.clusters(file.size), self._end, 1):
            first = self._first_run(start, count)
            try:
                file.truncate_up((first + count) << geometry.cluster_bits)
            except OSError:
                continue
            if start == self._end:
                self._end = first + count
            return first
        raise OSError(errno.ENOSPC, "there is no room for new tables")

    def _first_run(self, start: int, count: int) -> int:
        while True:
            first = self._first_free(start, count)
            ends = [end for begin, end in self._claimed if first < end and begin < first + count]
            if not ends:
                return first
            start = max(ends)

    def _first_free(self, start: int, count: int) -> int:
        first, length = start, 0
        for run, free in self._counts.runs_of_free(start):
            if run != first + length:
                first, length = run, 0
            length += free
            if length >= count:
                break
        return first


def rebuild(image: Image, counts: Counts, comparison: Comparison, space: FreeSpace) -> None:
    """Write a new refcount table with all its blocks, and switch to it.

    Args:
        image: open for writing, nothing waiting to be written.
        counts: of all references, those of the old structures among them; it is made to fit the
            new ones.
        comparison: what was found of the old structures.
        space: for the new ones.

    Raises:
        ImageFormatError: the table would become too large.
        OSError: as the system says; the old structures stand.
    """
    for cluster, times in comparison.counted.items():
        counts.add(cluster, 1, -times)
    per_block_bits = image.refcounts.per_block_bits
    shift = per_block_bits - counts.page_bits
    needed = {number >> shift for number, page in counts.pages.items() if any(page)}
    first, table_clusters = _find_place(image, needed, space)
    counts.add(first, len(needed) + table_clusters)
    table = bigendian.zeroes(table_clusters << (image.cluster_bits - 3))
    pages = counts.by_block(per_block_bits)
    for place, number in enumerate(sorted(needed), first):
        content = counts.block(number, per_block_bits, image.refcounts.order, pages[number])
        table[number] = place << image.cluster_bits
        image.file.write_metadata(table[number], content)
    offset = (first + len(needed)) << image.cluster_bits
    image.file.write_metadata(offset, bigendian.to_bytes(table))
    image.metadata.flush()
    image.header.refcount_table_offset = offset
    image.header.refcount_table_clusters = table_clusters
    image.header_writer.write_fields()


def _find_place(image: Image, needed: set[int], space: FreeSpace) -> tuple[int, int]:
    """Where blocks and table go, and the table's clusters; adds the blocks that these need."""
    per_block_bits = image.refcounts.per_block_bits
    while True:
        table_bytes = (max(needed) + 1) * 8
        if table_bytes > layout.MAX_REFTABLE_BYTES:
            raise ImageFormatError("is too large for a refcount table: it cannot be repaired")
        table_clusters = image.geometry.clusters(table_bytes)
        count = len(needed) + table_clusters
        first = space.find(count)
        last = first + count - 1
        covering = set(range(first >> per_block_bits, (last >> per_block_bits) + 1))
        if covering <= needed:
            return first, table_clusters
        needed |= covering
