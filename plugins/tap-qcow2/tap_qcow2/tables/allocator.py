"""Where new host clusters come from: which ones are free, and must not be given out all the same.

A cluster that is given up is not given out again until nothing on disk points to it any more: only
then it is counted down (see `tables.writeback`).

Source: qcow2.rst, "Host cluster management".
"""

from __future__ import annotations

import errno

from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tap_qcow2.tables.refcounts import Refcounts
from tapcore import ImageFile, ImageFormatError, NotSupportedError


class Allocator:
    """Gives out host clusters of an image file.

    Args:
        file: the image file.
        header: of the image.
        refcounts: of its clusters.

    Attributes:
        metadata: clusters that hold what must never be given out or overwritten as data.
        end: the first byte past all clusters that were ever given out here.
    """

    def __init__(self, file: ImageFile, header: Header, refcounts: Refcounts) -> None:
        self._file = file
        self._header = header
        self._refcounts = refcounts
        self._bits = header.cluster_bits
        self._limit = file.size >> self._bits if _is_device(file) else 0
        self.reset()
        refcounts.on_free = self._on_free

    def reset(self) -> None:
        """The refcounts were read anew."""
        self.metadata: set[int] = set()
        self.end = self._file.size
        self._lowest = 0  # no cluster below it is free
        self._packing = 0  # byte offset at which the next compressed cluster may begin

    def _on_free(self, cluster: int, count: int) -> None:
        self._lowest = min(self._lowest, cluster)
        if cluster <= self._packing >> self._bits < cluster + count:
            self._packing = 0

    def take_back(self, cluster: int, count: int) -> None:
        """Clusters that were given out, and that nothing ever pointed to."""
        for each in range(cluster, cluster + count):
            self._refcounts.add(each, -1)

    def allocate(self, most: int) -> tuple[int, int]:
        """Take free clusters that lie side by side, each with a refcount of 1.

        Args:
            most: how many are wanted.

        Returns:
            The first cluster's number, and how many they are: at least one.

        Raises:
            ImageFormatError: what is counted as free holds metadata.
        """
        refcounts = self._refcounts
        while True:
            number = self._lowest >> refcounts.per_block_bits
            block = refcounts.block(number)
            if block is None:
                block = self._new_block(number)
                continue
            start = self._lowest & (refcounts.per_block - 1)
            at = block.find_free(start)
            if at is None:
                if start <= block.full_below:
                    block.full_below = refcounts.per_block
                self._lowest = (number + 1) << refcounts.per_block_bits
                continue
            count = 1 if most == 1 else block.free_run(at, most)
            cluster = (number << refcounts.per_block_bits) + at
            if self._limit:
                count = max(min(count, self._limit - cluster), 1)
                self._refuse_past_end(cluster + count)
            if count > 1 or cluster in self.metadata:
                self._refuse_metadata(cluster, count)
            refcounts.take(block, at, count)
            self._lowest = end = cluster + count
            self.end = max(self.end, end << self._bits)
            return cluster, count

    def allocate_contiguous(self, count: int) -> int:
        """Take exactly `count` clusters side by side, for a table; returns the first one.

        Blocks that are missing to count them are put in front of them: a block that sat down in the
        first cluster that it counts, as for single clusters, would lie in the middle.
        """
        first, missing = self._find_run(count)
        while missing and missing[-1] >= len(self._refcounts.table):
            self._grow_table(missing[-1])
            first, missing = self._find_run(count)
        total = len(missing) + count
        self._refuse_past_end(first + total)
        self._refuse_metadata(first, total)
        for place, number in enumerate(missing, first):
            self._add_block(number, self._empty_block(place))
        for cluster in range(first, first + total):
            self._refcounts.add(cluster, 1)
        self.end = max(self.end, (first + total) << self._bits)
        return first + len(missing)

    def _find_run(self, count: int) -> tuple[int, list[int]]:
        """Free clusters side by side, `count` and one for each block that is missing among them.

        Returns:
            The first cluster, and the numbers of these blocks.
        """
        refcounts = self._refcounts
        at, run = self._lowest, 0
        missing: list[int] = []
        while run < count + len(missing) or not run:
            number = at >> refcounts.per_block_bits
            block = refcounts.block(number)
            if block is not None and block.values[at & (refcounts.per_block - 1)]:
                run, missing = 0, []
            else:
                run += 1
                if block is None and number not in missing[-1:]:
                    missing.append(number)
            at += 1
        return at - run, missing

    def _refuse_metadata(self, cluster: int, count: int = 1) -> None:
        if not self.metadata.isdisjoint(range(cluster, cluster + count)):
            raise ImageFormatError(
                "has wrong refcounts: it would overwrite its own tables; check and repair it",
                errno=errno.EIO,
            )

    def _refuse_past_end(self, end: int) -> None:
        """On a block device, which cannot grow: nothing is given out that does not exist."""
        if self._limit and end > self._limit:
            raise OSError(errno.ENOSPC, "the block device is full")

    def allocate_bytes(self, length: int) -> int:
        """Room for a compressed cluster: byte offset of `length` bytes, packed close together.

        Args:
            length: bytes, at most a cluster.
        """
        at = self._packing
        room = -at % (1 << self._bits)
        if (
            room
            and self._refcounts.get(at >> self._bits) < self._refcounts.most
            and (length <= room or self._take_following(at >> self._bits))
        ):
            self._refcounts.add(at >> self._bits, 1)
            self._packing = at + length
            return at
        cluster, _ = self.allocate(1)
        self._packing = (cluster << self._bits) + length
        return cluster << self._bits

    def _take_following(self, cluster: int) -> bool:
        """Take the cluster behind one, if it is free."""
        if self._refcounts.get(cluster + 1):
            return False
        hint, self._lowest = self._lowest, cluster + 1
        taken, _ = self.allocate(1)
        self._lowest = min(self._lowest, hint)
        if taken == cluster + 1:
            return True
        self.take_back(taken, 1)  # a new refcount block has taken the place
        return False

    # ---- growing ----------------------------------------------------------------------------

    def _new_block(self, number: int) -> RefcountBlock:
        """A block for clusters that none covers yet, in the first of them that it may have."""
        if number >= len(self._refcounts.table):
            self._grow_table(number)
            found = self._refcounts.block(number)
            if found is not None:
                return found
        cluster = number << self._refcounts.per_block_bits
        self._refuse_past_end(cluster + 1)
        self._refuse_metadata(cluster)
        block = self._empty_block(cluster)
        block.values[0] = 1
        self._add_block(number, block)
        return block

    def _empty_block(self, place: int) -> RefcountBlock:
        """A block for a cluster's place."""
        refcounts = self._refcounts
        return RefcountBlock.empty(refcounts.order, place << self._bits, refcounts.per_block)

    def _add_block(self, number: int, block: RefcountBlock) -> None:
        self._refcounts.add_block(number, block)
        self.metadata.add(block.offset >> self._bits)
        self.end = max(self.end, block.offset + (1 << self._bits))

    def _grow_table(self, number: int) -> None:
        """A larger table, in clusters that new blocks of its own cover."""
        first = number << self._refcounts.per_block_bits
        wanted = max(number + 1, len(self._refcounts.table) * 3 // 2)
        while True:
            clusters = (wanted * 8 + (1 << self._bits) - 1) >> self._bits
            blocks = (clusters + self._refcounts.per_block - 1) // self._refcounts.per_block + 1
            if number + blocks <= clusters << (self._bits - 3):
                break
            wanted = number + blocks + 1
        if clusters << self._bits > layout.MAX_REFTABLE_BYTES:
            raise NotSupportedError(
                "the refcount table has reached its largest size: larger clusters are needed",
                errno=errno.EFBIG,
            )
        self._move_table(first, clusters, blocks, number)

    def _move_table(self, first: int, clusters: int, blocks: int, number: int) -> None:
        """The blocks come first, in the clusters that they count; the table follows."""
        header, refcounts = self._header, self._refcounts
        self._refuse_past_end(first + blocks + clusters)
        old = header.refcount_table_offset >> self._bits
        old_clusters = range(old, old + header.refcount_table_clusters)
        entries = clusters << (self._bits - 3)
        refcounts.table.extend(bigendian.zeroes(entries - len(refcounts.table)))
        for each in range(blocks):
            self._add_block(number + each, self._empty_block(first + each))
        place = first + blocks
        self._refuse_metadata(place, clusters)
        for cluster in range(first, place + clusters):
            refcounts.add(cluster, 1)
        refcounts.move_table(place << self._bits, clusters)
        self.end = max(self.end, (place + clusters) << self._bits)
        self.metadata.difference_update(old_clusters)
        self.metadata.update(range(place, place + clusters))


def _is_device(file: ImageFile) -> bool:
    return file.fixed_size
