"""Entering what was written into the L2 tables, and giving up what was there before.

Everything here changes memory only; `tables.writeback` brings it to the disk in a safe order.
"""

from __future__ import annotations

import errno

from tap_qcow2.ondisk.entries import (
    ALL_DATA,
    compressed,
    copied,
    l1_entry,
    offset_of,
    with_data,
)
from tap_qcow2.tables.l2tables import Table
from tap_qcow2.tables.metadata import Metadata
from tapcore import ImageFormatError


def own_table(metadata: Metadata, index: int) -> Table:
    """The L2 table of an L1 entry, in memory and not shared with a snapshot; made if need be.

    Raises:
        TapError: no cluster for it, or damage.
        OSError: it could not be read.
    """
    tables, bits = metadata.tables, metadata.geometry.cluster_bits
    if tables.cached(index) is None and not tables.offset_of(index):
        return tables.add(index, _table_cluster(metadata) << bits)
    table = tables.wait(index)
    if not table.checked:
        check_for_writing(metadata, table)
    if copied(tables.l1[index]):
        return table
    cluster = _table_cluster(metadata)
    metadata.refcounts.release(table.offset >> bits)
    own = tables.add(index, cluster << bits, table.entries)
    if {l1_entry(table.offset), l1_entry(table.offset, single=False)}.isdisjoint(tables.l1):
        # a snapshot's, or nobody's, and then it may be given out again
        metadata.allocator.metadata.discard(table.offset >> bits)
    return own


def _table_cluster(metadata: Metadata) -> int:
    cluster, _ = metadata.allocator.allocate(1)
    metadata.allocator.metadata.add(cluster)
    return cluster


def check_for_writing(metadata: Metadata, table: Table) -> None:
    """Before the first change through a table: none of its entries may lead to metadata.

    What an entry points to is written in place, or given up when the entry changes.

    Raises:
        ImageFormatError: one does, or is not possible.
    """
    if not metadata.allocator.metadata.isdisjoint(metadata.decoder.clusters(table.entries)):
        raise ImageFormatError(
            "has an L2 entry that points to the image's own tables", errno=errno.EIO
        )
    table.checked = True


def link(metadata: Metadata, cluster: int, host: int, count: int) -> None:
    """Let clusters of the disk be found where they were written, whole.

    Args:
        metadata: of an image that is written.
        cluster: of the disk, the first one.
        host: offset of its data (bytes); those of the others follow it.
        count: how many, all mapped by one L2 table.

    Raises:
        TapError, OSError: they cannot be entered; nothing was.
    """
    geometry, decoder = metadata.geometry, metadata.decoder
    table = own_table(metadata, cluster >> geometry.l2_bits)
    at = cluster & geometry.entry_mask
    for number in range(at, at + count):
        release(metadata, table.entries[number * geometry.words], host)
        metadata.tables.set(table, number, decoder.plain(host), ALL_DATA)
        host += geometry.cluster_size


def link_subclusters(
    metadata: Metadata, cluster: int, host: int, chosen: int, *, alone: bool
) -> None:
    """Let some subclusters of a cluster be found where they were written.

    Args:
        metadata: of an image that is written, with extended L2 entries.
        cluster: of the disk.
        host: offset of the cluster's data (bytes).
        chosen: the subclusters that were written, as a bitmap says that they have data.
        alone: nothing else of the cluster's old state stays.

    Raises:
        TapError, OSError: as `link`.
    """
    geometry = metadata.geometry
    table = own_table(metadata, cluster >> geometry.l2_bits)
    at = cluster & geometry.entry_mask
    entry, bitmap = table.entries[at * 2], table.entries[at * 2 + 1]
    release(metadata, entry, host)
    bitmap = chosen if alone else with_data(bitmap, chosen)
    metadata.tables.set(table, at, metadata.decoder.plain(host), bitmap)


def replace(metadata: Metadata, table: Table, number: int, entry: int, bitmap: int = 0) -> None:
    """Change what an entry says; what it does not lead to any more is given up.

    Space of a plain cluster that no other takes the place of goes back to the file system.

    Args:
        metadata: of an image that is written.
        table: its own, see `own_table`.
        number: of the cluster in the table.
        entry: the new one.
        bitmap: of its subclusters, where entries are extended.
    """
    old = table.entries[number * metadata.geometry.words]
    gone = metadata.decoder.stored_at(old)
    if gone and not offset_of(entry):
        metadata.refcounts.discarded.add(gone >> metadata.geometry.cluster_bits)
    release(metadata, old, offset_of(entry))
    metadata.tables.set(table, number, entry, bitmap)


def release(metadata: Metadata, entry: int, host: int = 0) -> None:
    """An L2 entry is about to be replaced: give up what it leads to, unless that is at `host`."""
    decoder, refcounts = metadata.decoder, metadata.refcounts
    if compressed(entry):
        refcounts.release_bytes(*decoder.compressed_range(entry))
        return
    old = decoder.stored_at(entry)
    if old and old != host:
        refcounts.release(old >> metadata.geometry.cluster_bits)
