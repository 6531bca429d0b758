"""How often each host cluster is referred to: the refcount table, and its blocks in memory.

Refcounts only ever err on the safe side on disk: a cluster that is taken is counted on disk before
anything points to it, and one that is given up is counted down only after nothing points to it any
more (see `writeback`). `release` therefore only notes it; until that is done, the cluster is not
given out again.

Source: qcow2.rst, "Host cluster management".
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Iterator
from itertools import compress
from typing import Final

from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tap_qcow2.tables.l2tables import WORDS
from tapcore import ImageFile, ImageFormatError, NotSupportedError
from tapcore.clusters import Table

BLOCK_CACHE: Final = 4 << 20
"""Bytes of refcount blocks to keep: those of 128 GiB at the defaults."""


class Refcounts:
    """The refcount table and its blocks.

    Args:
        file: the image file.
        header: of the image; its refcount table's place is changed when that grows.
        table: the refcount table's entries.

    Attributes:
        directory: the refcount table, and what of it has changed.
        table_moved: the table has a new place, which the header on disk does not say yet.
        dirty: blocks with changes.
        released: clusters given up since the last write-back, once for each reference.
        discarded: those of them whose space goes back to the file system once they are free.
        on_free: told of clusters that are free now: the first one, and how many.
        order: log2 of a refcount's width in bits.
        per_block: refcounts in a block; `per_block_bits` is log2 of that.
        most: the largest refcount that fits into the width.
    """

    def __init__(self, file: ImageFile, header: Header, table: Words) -> None:
        self._file = file
        self._header = header
        self._bits = header.cluster_bits
        self._keep = max(BLOCK_CACHE >> header.cluster_bits, 4)
        self.on_free: Callable[[int, int], None] = _nobody
        self.reload(table)

    def reload(self, table: Words) -> None:
        """Go by another table from now on, and by the header as it is; no change is kept."""
        self.order = self._header.refcount_order
        self.per_block_bits = self._header.cluster_bits + 3 - self.order
        self.per_block = 1 << self.per_block_bits
        self.most = (1 << (1 << self.order)) - 1
        self.directory = Table(-1, self._header.refcount_table_offset, table, WORDS)
        self.table_moved = False
        self.dirty: set[RefcountBlock] = set()
        self.released: list[int] = []
        self.discarded: set[int] = set()
        self._blocks: dict[int, RefcountBlock] = {}

    @property
    def table(self) -> Words:
        """The refcount table's entries."""
        return self.directory.entries

    # ---- reading ----------------------------------------------------------------------------

    def block(self, number: int) -> RefcountBlock | None:
        """A refcount block, read where it is not in memory; None: all its clusters are free.

        Raises:
            OSError: as the system says.
            ImageFormatError: the table's entry is not possible.
        """
        found = self._blocks.get(number)
        if found is not None:
            return found
        if number >= len(self.table) or not self.table[number]:
            return None
        offset = self.table[number]
        size = 1 << self._bits
        if offset & (size - 1) or offset + size > self._file.size:  # zeroes would say: free
            raise ImageFormatError(
                f"has an impossible refcount table entry ({offset:#x}); check it",
                errno=errno.EIO,
            )
        content = self._file.read_metadata(offset, size)
        return self._enter(number, RefcountBlock.parse(self.order, offset, content))

    def _enter(self, number: int, block: RefcountBlock) -> RefcountBlock:
        if len(self._blocks) >= self._keep:
            for old, each in list(self._blocks.items())[: len(self._blocks) // 2]:
                if not each.dirty and not each.pinned:
                    del self._blocks[old]
        self._blocks[number] = block
        return block

    def get(self, cluster: int) -> int:
        """How often a host cluster is referred to."""
        block = self.block(cluster >> self.per_block_bits)
        return 0 if block is None else block.values[cluster & (self.per_block - 1)]

    def ones(self, cluster: int, count: int) -> int:
        """How many of the clusters side by side are referred to exactly once."""
        found = 0
        for block, at, end in self._parts(cluster, count):
            if block is not None:
                found += block.values[at:end].count(1)
        return found

    def counted_from(self, cluster: int) -> bool:
        """Whether any host cluster from one on is referred to."""
        first, at = cluster >> self.per_block_bits, cluster & (self.per_block - 1)
        for number in compress(range(first, len(self.table)), self.table[first:]):
            block = self.block(number)
            if block is not None and any(block.values[at if number == first else 0 :]):
                return True
        return False

    def _parts(self, cluster: int, count: int) -> Iterator[tuple[RefcountBlock | None, int, int]]:
        """Clusters side by side as parts of blocks: (block, first item, the one behind)."""
        while count:
            at = cluster & (self.per_block - 1)
            step = min(count, self.per_block - at)
            yield self.block(cluster >> self.per_block_bits), at, at + step
            cluster += step
            count -= step

    # ---- changing ---------------------------------------------------------------------------

    def add_run(self, cluster: int, count: int, delta: int) -> list[tuple[int, int]]:
        """Change the refcounts of clusters in use that lie side by side, all of them or none.

        Args:
            cluster: the first one.
            count: how many.
            delta: 1 or -1.

        Returns:
            Those that are free now: (first cluster, how many).

        Raises:
            ImageFormatError: one of them is counted as free.
            NotSupportedError: a refcount would not fit into its width.
        """
        for block, at, end in self._parts(cluster, count):
            if block is None or not min(block.values[at:end]):
                raise _below_zero(cluster)
            if max(block.values[at:end]) + delta > self.most:
                raise self._too_large()
        freed: list[tuple[int, int]] = []
        for block, at, end in self._parts(cluster, count):  # each is marked before the next is read
            assert block is not None
            values = block.values
            values[at:end] = array(values.typecode, [value + delta for value in values[at:end]])
            self.mark(block)
            if not min(values[at:end]):
                block.full_below = min(block.full_below, at)
                freed.extend((cluster + run - at, many) for run, many in block.free_runs(at, end))
            cluster += end - at
        for first, many in freed:
            self.on_free(first, many)
        return freed

    def _too_large(self) -> NotSupportedError:
        return NotSupportedError(
            f"a refcount would exceed {self.most}: amend refcount_bits to a larger width",
            errno=errno.EINVAL,
        )

    def add(self, cluster: int, delta: int) -> int:
        """Change one refcount in memory; returns the new one.

        Raises:
            ImageFormatError: it would become negative.
            NotSupportedError: it would not fit into its width.
        """
        block = self.block(cluster >> self.per_block_bits)
        if block is None:
            raise _below_zero(cluster)
        at = cluster & (self.per_block - 1)
        value = block.values[at] + delta
        if value < 0:
            raise _below_zero(cluster)
        if value > self.most:
            raise self._too_large()
        block.values[at] = value
        if not value:
            block.full_below = min(block.full_below, at)
            self.on_free(cluster, 1)
        self.mark(block)
        return value

    def take(self, block: RefcountBlock, at: int, count: int) -> None:
        """Free clusters of a block, from an item on, are in use now."""
        values = block.values
        if count == 1:
            values[at] = 1
        else:
            values[at : at + count] = array(values.typecode, (1,)) * count
        if block.full_below == at:
            block.full_below = at + count
        if not block.dirty:
            self.mark(block)

    def mark(self, block: RefcountBlock) -> None:
        """A block was changed."""
        block.dirty = True
        self.dirty.add(block)

    def release(self, cluster: int) -> None:
        """Something that pointed to a cluster no longer does, in memory."""
        self.released.append(cluster)

    def release_bytes(self, offset: int, length: int) -> None:
        """The same for all clusters that a range of the file touches."""
        self.released.extend(range(offset >> self._bits, ((offset + length - 1) >> self._bits) + 1))

    # ---- new blocks -------------------------------------------------------------------------

    def add_block(self, number: int, block: RefcountBlock) -> None:
        """A new block, of a number that the table has room for."""
        self._enter(number, block)
        self.mark(block)
        self.directory.set(number, [block.offset])

    def move_table(self, offset: int, clusters: int) -> None:
        """The table has grown, and lies somewhere else: at an offset (bytes), in so many clusters.

        Its old clusters are given up.
        """
        header = self._header
        first = header.refcount_table_offset >> self._bits
        self.released.extend(range(first, first + header.refcount_table_clusters))
        header.refcount_table_offset = self.directory.offset = offset
        header.refcount_table_clusters = clusters
        self.table_moved = True


def _nobody(cluster: int, count: int) -> None:
    """Nobody wants to know of clusters that are free."""


def _below_zero(cluster: int) -> ImageFormatError:
    return ImageFormatError(
        f"has wrong refcounts: cluster {cluster} is in use, but counted as free; repair it",
        errno=errno.EIO,
    )
