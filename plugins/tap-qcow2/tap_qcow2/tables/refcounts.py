"""Host clusters: how often each is referred to, and where new ones come from.

Refcounts only ever err on the safe side on disk: a cluster that is taken is counted on disk before
anything points to it, and one that is given up is counted down only after nothing points to it any
more (see `writeback`). `release` therefore only notes it; until that is done, the cluster is not
given out again.

Source: qcow2.rst, "Host cluster management".
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Iterator
from typing import Final

from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tapcore import ImageFile, ImageFormatError, NotSupportedError

BLOCK_CACHE: Final = 4 << 20
"""Bytes of refcount blocks to keep: those of 128 GiB at the defaults."""

_TABLE_SECTOR_SHIFT: Final = 6  # 64 entries in a sector


class Refcounts:
    """The refcount table and its blocks.

    Args:
        file: the image file.
        header: of the image; its refcount table's place is changed when that grows.
        table: the refcount table's entries.

    Attributes:
        table: entries.
        table_dirty: sectors of the table that have changed.
        table_moved: the table has a new place, which the header on disk does not say yet.
        dirty: blocks with changes.
        released: clusters given up since the last write-back, once for each reference.
        metadata: clusters that hold what must never be given out or overwritten as data.
        end: the first byte past all clusters that were ever given out here.
    """

    def __init__(self, file: ImageFile, header: Header, table: Words) -> None:
        self._file = file
        self._header = header
        self._bits = header.cluster_bits
        self.order = header.refcount_order
        self.per_block_bits = header.cluster_bits + 3 - header.refcount_order
        self.per_block = 1 << self.per_block_bits
        self.most = (1 << (1 << self.order)) - 1
        self.table = table
        self.table_dirty: set[int] = set()
        self.table_moved = False
        self.dirty: set[RefcountBlock] = set()
        self.released: list[int] = []
        self.metadata: set[int] = set()
        self.end = file.size
        self._limit = file.size >> self._bits if _is_device(file) else 0
        self._blocks: dict[int, RefcountBlock] = {}
        self._keep = max(BLOCK_CACHE >> header.cluster_bits, 4)
        self._hint = 0
        self._packing = 0  # byte offset at which the next compressed cluster may begin

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
        first = cluster >> self.per_block_bits
        for number in range(first, len(self.table)):
            block = self.block(number)
            at = cluster & (self.per_block - 1) if number == first else 0
            if block is not None and any(block.values[at:]):
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
            self._mark(block)
            if not min(values[at:end]):
                block.full_below = min(block.full_below, at)
                freed.extend((cluster + run - at, many) for run, many in block.free_runs(at, end))
            cluster += end - at
        if freed:
            self._hint = min(self._hint, freed[0][0])
            self._packing = 0
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
            self._hint = min(self._hint, cluster)
            if self._packing >> self._bits == cluster:
                self._packing = 0
        self._mark(block)
        return value

    def _mark(self, block: RefcountBlock) -> None:
        block.dirty = True
        self.dirty.add(block)

    def release(self, cluster: int) -> None:
        """Something that pointed to a cluster no longer does, in memory."""
        self.released.append(cluster)

    def release_bytes(self, offset: int, length: int) -> None:
        """The same for all clusters that a range of the file touches."""
        self.released.extend(range(offset >> self._bits, ((offset + length - 1) >> self._bits) + 1))

    def take_back(self, cluster: int, count: int) -> None:
        """Clusters that were given out, and that nothing ever pointed to."""
        for each in range(cluster, cluster + count):
            self.add(each, -1)

    # ---- giving out -------------------------------------------------------------------------

    def allocate(self, most: int) -> tuple[int, int]:
        """Take free clusters that lie side by side, each with a refcount of 1.

        Args:
            most: how many are wanted.

        Returns:
            The first cluster's number, and how many they are: at least one.

        Raises:
            ImageFormatError: what is counted as free holds metadata.
        """
        while True:
            number = self._hint >> self.per_block_bits
            block = self.block(number)
            if block is None:
                block = self._new_block(number)
                continue
            start = self._hint & (self.per_block - 1)
            at = block.find_free(start)
            if at is None:
                block.full_below = self.per_block if start <= block.full_below else block.full_below
                self._hint = (number + 1) << self.per_block_bits
                continue
            count = block.free_run(at, most)
            cluster = (number << self.per_block_bits) + at
            if self._limit:
                count = max(min(count, self._limit - cluster), 1)
                self._refuse_past_end(cluster + count)
            self._take(block, cluster, count)
            return cluster, count

    def allocate_contiguous(self, count: int) -> int:
        """Take exactly `count` clusters side by side, for a table; returns the first one.

        Blocks that are missing to count them are put in front of them: a block that sat down in the
        first cluster that it counts, as for single clusters, would lie in the middle.
        """
        first, missing = self._find_run(count)
        while missing and missing[-1] >= len(self.table):
            self._grow_table(missing[-1])
            first, missing = self._find_run(count)
        total = len(missing) + count
        self._refuse_past_end(first + total)
        self._refuse_metadata(first, total)
        for place, number in enumerate(missing, first):
            offset = place << self._bits
            self._add_block(number, RefcountBlock.empty(self.order, offset, self.per_block))
        for cluster in range(first, first + total):
            self.add(cluster, 1)
        self.end = max(self.end, (first + total) << self._bits)
        return first + len(missing)

    def _find_run(self, count: int) -> tuple[int, list[int]]:
        """Free clusters side by side, `count` and one for each block that is missing among them.

        Returns:
            The first cluster, and the numbers of these blocks.
        """
        at, run = self._hint, 0
        missing: list[int] = []
        while run < count + len(missing) or not run:
            number = at >> self.per_block_bits
            block = self.block(number)
            if block is not None and block.values[at & (self.per_block - 1)]:
                run, missing = 0, []
            else:
                run += 1
                if block is None and number not in missing[-1:]:
                    missing.append(number)
            at += 1
        return at - run, missing

    def _take(self, block: RefcountBlock, cluster: int, count: int) -> None:
        at = cluster & (self.per_block - 1)
        self._refuse_metadata(cluster, count)
        values = block.values
        if count == 1:
            values[at] = 1
        else:
            values[at : at + count] = array(values.typecode, (1,)) * count
        if block.full_below == at:
            block.full_below = at + count
        self._mark(block)
        self._hint = cluster + count
        self.end = max(self.end, (cluster + count) << self._bits)

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
            and self.get(at >> self._bits) < self.most
            and (length <= room or self._take_following(at >> self._bits))
        ):
            self.add(at >> self._bits, 1)
            self._packing = at + length
            return at
        cluster, _ = self.allocate(1)
        self._packing = (cluster << self._bits) + length
        return cluster << self._bits

    def _take_following(self, cluster: int) -> bool:
        """Take the cluster behind one, if it is free."""
        if self.get(cluster + 1):
            return False
        hint, self._hint = self._hint, cluster + 1
        taken, _ = self.allocate(1)
        self._hint = min(self._hint, hint)
        if taken == cluster + 1:
            return True
        self.take_back(taken, 1)  # a new refcount block has taken the place
        return False

    # ---- growing ----------------------------------------------------------------------------

    def _new_block(self, number: int) -> RefcountBlock:
        """A block for clusters that none covers yet, in the first of them that it may have."""
        if number >= len(self.table):
            self._grow_table(number)
            found = self.block(number)
            if found is not None:
                return found
        cluster = number << self.per_block_bits
        self._refuse_past_end(cluster + 1)
        self._refuse_metadata(cluster)
        block = RefcountBlock.empty(self.order, cluster << self._bits, self.per_block)
        block.values[0] = 1
        self._add_block(number, block)
        return block

    def _add_block(self, number: int, block: RefcountBlock) -> None:
        self._enter(number, block)
        self._mark(block)
        self.table[number] = block.offset
        self.table_dirty.add(number >> _TABLE_SECTOR_SHIFT)
        self.metadata.add(block.offset >> self._bits)
        self.end = max(self.end, block.offset + (1 << self._bits))

    def _grow_table(self, number: int) -> None:
        """A larger table, in clusters that new blocks of its own cover."""
        first = number << self.per_block_bits
        wanted = max(number + 1, len(self.table) * 3 // 2)
        while True:
            clusters = (wanted * 8 + (1 << self._bits) - 1) >> self._bits
            blocks = (clusters + self.per_block - 1) // self.per_block + 1
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
        header = self._header
        self._refuse_past_end(first + blocks + clusters)
        old = header.refcount_table_offset >> self._bits, header.refcount_table_clusters
        entries = clusters << (self._bits - 3)
        self.table.extend(bigendian.zeroes(entries - len(self.table)))
        for each in range(blocks):
            offset = (first + each) << self._bits
            block = RefcountBlock.empty(self.order, offset, self.per_block)
            self._add_block(number + each, block)
        place = first + blocks
        for cluster in range(first, place + clusters):
            self._refuse_metadata_unless_block(cluster, first, blocks)
            self.add(cluster, 1)
        header.refcount_table_offset = place << self._bits
        header.refcount_table_clusters = clusters
        self.end = max(self.end, (place + clusters) << self._bits)
        self.table_moved = True
        self.metadata.difference_update(range(old[0], old[0] + old[1]))
        self.metadata.update(range(place, place + clusters))
        self.released.extend(range(old[0], old[0] + old[1]))

    def _refuse_metadata_unless_block(self, cluster: int, first: int, blocks: int) -> None:
        if cluster >= first + blocks:
            self._refuse_metadata(cluster)

    def forget(self) -> None:
        """Drop what is in memory of the blocks: they were changed on disk. None may be dirty."""
        assert not self.dirty
        self._blocks.clear()
        self._hint = 0
        self._packing = 0


def _is_device(file: ImageFile) -> bool:
    return stat.S_ISBLK(os.fstat(file.fd).st_mode)


def _below_zero(cluster: int) -> ImageFormatError:
    return ImageFormatError(
        f"has wrong refcounts: cluster {cluster} is in use, but counted as free; repair it",
        errno=errno.EIO,
    )
