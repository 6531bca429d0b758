"""Changing the width of refcounts: a new table and new blocks, and one write of the header.

They are written behind everything that is counted, where the old refcounts need not change: until
the header points to them this is free space, and afterwards the old ones are. Blocks are read and
written one by one.

Source: qcow2.rst, "Host cluster management".
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

import attrs

from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tapcore import ImageFormatError, NotSupportedError, UsageError

if TYPE_CHECKING:
    from tap_qcow2.image import Image


@attrs.define
class Plan:
    """Where the new refcounts will lie.

    Attributes:
        order: log2 of their width in bits.
        per_block_bits: log2 of how many lie in a block.
        first: cluster of the first block.
        blocks: numbers of the blocks that there will be, in order; they lie side by side.
        table_clusters: of the table, which follows them.
    """

    order: int
    per_block_bits: int
    first: int
    blocks: list[int]
    table_clusters: int

    @property
    def table(self) -> int:
        """Cluster of the table."""
        return self.first + len(self.blocks)

    @property
    def end(self) -> int:
        """The first cluster behind all."""
        return self.table + self.table_clusters


def change_width(image: Image, order: int) -> None:
    """Give an image refcounts of another width.

    Args:
        image: of version 3, open for writing, with everything on disk.
        order: log2 of the new width in bits.

    Raises:
        UsageError: there is a refcount that has no room.
        TapError, OSError: it failed; the image is as it was.
    """
    blocks, first = _survey(image, order)
    plan = _lay_out(image, order, blocks, first)
    image.file.truncate_up(plan.end << image.cluster_bits)
    table = bigendian.zeroes(plan.table_clusters << (image.cluster_bits - 3))
    given_up = _old_structure(image, plan.per_block_bits)
    for place, number in enumerate(plan.blocks, plan.first):
        table[number] = place << image.cluster_bits
        block = _new_block(image, plan, number, given_up.get(number, []))
        image.file.write_metadata(table[number], block.serialize())
    image.file.write_metadata(plan.table << image.cluster_bits, bigendian.to_bytes(table))
    image.metadata.flush()
    _switch(image, plan)
    image.refcounts.reload(table)
    image.allocator.reset()


def _switch(image: Image, plan: Plan) -> None:
    header = image.header
    before = header.refcount_order, header.refcount_table_offset, header.refcount_table_clusters
    header.refcount_order = plan.order
    header.refcount_table_offset = plan.table << image.cluster_bits
    header.refcount_table_clusters = plan.table_clusters
    try:
        image.header_writer.write_fields()
    except BaseException:
        header.refcount_order, header.refcount_table_offset, header.refcount_table_clusters = before
        raise


# ---- what there is ---------------------------------------------------------------------------


def _survey(image: Image, order: int) -> tuple[set[int], int]:
    """Numbers of the new blocks that something lies in, and the first cluster behind all of it."""
    refcounts = image.refcounts
    offsets = [offset for offset in refcounts.table if offset]
    if len(set(offsets)) != len(offsets) or not refcounts.get(0):
        raise _damaged()
    limit = image.geometry.clusters(image.file.size)
    per_block_bits = image.cluster_bits + 3 - order
    step = min(1 << per_block_bits, refcounts.per_block)
    found: set[int] = set()
    end = 0
    for number in range(len(refcounts.table)):
        block = refcounts.block(number)
        used = 0 if block is None else _used(block.values)
        if block is None or not used:
            continue
        _check_values(block.values, order)
        base = number << refcounts.per_block_bits
        end = base + used
        if end > limit:
            raise _damaged()
        _check_table(image, order, (end - 1) >> per_block_bits)
        for at in range(0, used, step):
            if any(block.values[at : at + step]):
                found.add((base + at) >> per_block_bits)
    return found, end


def _used(values: bigendian.Words) -> int:
    """How many items there are up to the last one that is not zero."""
    return -(-len(values.tobytes().rstrip(b"\0")) // values.itemsize)


def _check_values(values: bigendian.Words, order: int) -> None:
    bits = 1 << order
    largest = max(values)
    if largest >> bits:
        raise UsageError(f"cannot have refcount_bits={bits}: there is a refcount of {largest}")


def _old_structure(image: Image, per_block_bits: int) -> dict[int, list[int]]:
    """The clusters of the present table and blocks, by the number of the new block."""
    header, bits = image.header, image.cluster_bits
    first = header.refcount_table_offset >> bits
    clusters = [*range(first, first + header.refcount_table_clusters)]
    clusters += [offset >> bits for offset in image.refcounts.table if offset]
    found: dict[int, list[int]] = {}
    for cluster in clusters:
        found.setdefault(cluster >> per_block_bits, []).append(cluster)
    return found


def _damaged() -> ImageFormatError:
    return ImageFormatError("has wrong refcounts: check and repair it first", errno=errno.EIO)


# ---- what there will be ----------------------------------------------------------------------


def _lay_out(image: Image, order: int, blocks: set[int], first: int) -> Plan:
    """The blocks count themselves and the table, which takes more blocks."""
    bits = image.cluster_bits
    per_block_bits = bits + 3 - order
    while True:
        table_clusters = _check_table(image, order, max(blocks))
        last = first + len(blocks) + table_clusters - 1
        more = set(range(first >> per_block_bits, (last >> per_block_bits) + 1)) - blocks
        if not more:
            break
        blocks |= more
    plan = Plan(order, per_block_bits, first, sorted(blocks), table_clusters)
    if not image.allocator.metadata.isdisjoint(range(first, plan.end)):
        raise _damaged()
    return plan


def _check_table(image: Image, order: int, last: int) -> int:
    """Clusters of a table up to a block's number; raises where that is too large."""
    clusters = image.geometry.clusters((last + 1) * 8)
    if clusters << image.cluster_bits > layout.MAX_REFTABLE_BYTES:
        raise NotSupportedError(
            f"cannot have refcount_bits={1 << order}: the refcount table would be too large",
            errno=errno.EFBIG,
        )
    return clusters


def _new_block(image: Image, plan: Plan, number: int, given_up: list[int]) -> RefcountBlock:
    """A block with the counts of now, without the present structure, and with the new one."""
    old = image.refcounts
    size = 1 << plan.per_block_bits
    start = number << plan.per_block_bits
    block = RefcountBlock.empty(plan.order, 0, size)
    at = 0
    while at < size:
        skip = (start + at) & (old.per_block - 1)
        count = min(size - at, old.per_block - skip)
        present = old.block((start + at) >> old.per_block_bits)
        if present is not None:
            part = present.values[skip : skip + count]
            block.values[at : at + count] = array(block.values.typecode, part)
        at += count
    for cluster in range(max(plan.first, start), min(plan.end, start + size)):
        block.values[cluster - start] = 1
    for cluster in given_up:
        if not block.values[cluster - start]:
            raise _damaged()
        block.values[cluster - start] -= 1
    return block
