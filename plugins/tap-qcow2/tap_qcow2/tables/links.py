"""Entering what was written into the L2 tables, and giving up what was there before.

Everything here changes memory only; `tables.writeback` brings it to the disk in a safe order.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from tap_qcow2.ondisk import layout
from tapcore import ImageFormatError

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tap_qcow2.tables.l2tables import Table


def own_table(image: Image, index: int) -> Table:
    """The L2 table of an L1 entry, in memory and not shared with a snapshot; made if need be.

    Raises:
        TapError: no cluster for it, or damage.
        OSError: it could not be read.
    """
    tables, refcounts = image.tables, image.refcounts
    if tables.cached(index) is None and not tables.offset_of(index):
        cluster, _ = refcounts.allocate(1)
        refcounts.metadata.add(cluster)
        return tables.add(index, cluster << image.cluster_bits)
    table = tables.wait(index)
    if not table.checked:
        check_for_writing(image, table)
    if tables.l1[index] & layout.COPIED:
        return table
    cluster, _ = refcounts.allocate(1)
    refcounts.metadata.add(cluster)
    refcounts.release(table.offset >> image.cluster_bits)
    own = tables.add(index, cluster << image.cluster_bits, table.entries)
    if {table.offset, table.offset | layout.COPIED}.isdisjoint(tables.l1):
        # a snapshot's, or nobody's, and then it may be given out again
        refcounts.metadata.discard(table.offset >> image.cluster_bits)
    return own


def check_for_writing(image: Image, table: Table) -> None:
    """Before the first change through a table: none of its entries may lead to metadata.

    What an entry points to is written in place, or given up when the entry changes.

    Raises:
        ImageFormatError: one does, or is not possible.
    """
    geometry = image.geometry
    entries = table.entries if geometry.words == 1 else table.entries[::2]
    mask, compressed, bits = layout.OFFSET_MASK, layout.COMPRESSED, image.cluster_bits
    if image.data is image.file:
        hosts = {entry & mask for entry in entries if entry & mask and not entry & compressed}
        if any(host & (geometry.cluster_size - 1) for host in hosts):
            raise ImageFormatError("has an impossible L2 entry", errno=errno.EIO)
        clusters = {host >> bits for host in hosts}
    else:
        clusters = set()
    for entry in entries:
        if entry & compressed:
            offset, length = geometry.compressed(entry)
            clusters.update(range(offset >> bits, ((offset + length - 1) >> bits) + 1))
    if not image.refcounts.metadata.isdisjoint(clusters):
        raise ImageFormatError(
            "has an L2 entry that points to the image's own tables", errno=errno.EIO
        )
    table.checked = True


def link(image: Image, cluster: int, host: int, count: int) -> None:
    """Let clusters of the disk be found where they were written, whole.

    Args:
        image: open for writing.
        cluster: of the disk, the first one.
        host: offset of its data (bytes); those of the others follow it.
        count: how many, all mapped by one L2 table.

    Raises:
        TapError, OSError: they cannot be entered; nothing was.
    """
    table = own_table(image, cluster >> image.geometry.l2_bits)
    at = cluster & image.entry_mask
    step = image.geometry.cluster_size
    tables = image.tables
    for number in range(count):
        entry = (host + number * step) | layout.COPIED
        release_data(
            image, table.entries[(at + number) * image.geometry.words], host + number * step
        )
        if image.extended:
            tables.set_extended(table, at + number, entry, layout.ALL_ALLOCATED)
        else:
            tables.set(table, at + number, entry)


def link_subclusters(image: Image, cluster: int, host: int, mask: int, *, alone: bool) -> None:
    """Let some subclusters of a cluster be found where they were written.

    Args:
        image: with extended L2 entries.
        cluster: of the disk.
        host: offset of the cluster's data (bytes).
        mask: bits of the subclusters that were written.
        alone: nothing else of the cluster's old state stays.

    Raises:
        TapError, OSError: as `link`.
    """
    table = own_table(image, cluster >> image.geometry.l2_bits)
    at = cluster & image.entry_mask
    entry, bitmap = table.entries[at * 2], table.entries[at * 2 + 1]
    release_data(image, entry, host)
    bitmap = mask if alone else bitmap & ~(mask << 32) | mask
    image.tables.set_extended(table, at, host | layout.COPIED, bitmap)


def release_data(image: Image, entry: int, host: int = -1) -> None:
    """An L2 entry is about to be replaced: give up what it points to, unless that is `host`."""
    if entry & layout.COMPRESSED:
        image.refcounts.release_bytes(*image.geometry.compressed(entry))
        return
    old = entry & layout.OFFSET_MASK
    if old and old != host and image.data is image.file:
        image.refcounts.release(old >> image.cluster_bits)
