"""Entering what was written into the L2 tables, and giving up what was there before.

Everything here changes memory only; `tables.writeback` brings it to the disk in a safe order.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from tap_qcow2.ondisk.entries import compressed, copied, l1_entry, offset_of
from tap_qcow2.tables.l2tables import L2Table
from tap_qcow2.tables.metadata import Metadata
from tapcore import ImageFormatError


def own_table(metadata: Metadata, index: int) -> L2Table:
    """The L2 table of an L1 entry, in memory and not shared with a snapshot; made if need be.

    Raises:
        TapError: no cluster for it, or damage.
        OSError: it could not be read.
    """
    tables, bits = metadata.tables, metadata.geometry.cluster_bits
    known = tables.young.get(index)
    if known is not None and known.sound and copied(tables.directory.entries[index]):
        return known  # nearly always
    if not tables.offset_of(index):
        return tables.new(index, _table_cluster(metadata) << bits)
    table = tables.wait(index)
    check_for_writing(metadata, table)
    if copied(tables.l1[index]):
        return table
    cluster = _table_cluster(metadata)
    metadata.refcounts.release(table.offset >> bits)
    own = tables.new(index, cluster << bits, table.entries)
    if {l1_entry(table.offset), l1_entry(table.offset, single=False)}.isdisjoint(tables.l1):
        # a snapshot's, or nobody's, and then it may be given out again
        metadata.allocator.metadata.discard(table.offset >> bits)
    return own


def _table_cluster(metadata: Metadata) -> int:
    cluster, _ = metadata.allocator.allocate(1)
    metadata.allocator.metadata.add(cluster)
    return cluster


def check_for_writing(metadata: Metadata, table: L2Table) -> None:
    """Before the first change through a table: none of its entries may lead to metadata.

    What an entry points to is written in place, or given up when the entry changes.

    Raises:
        ImageFormatError: one does, or is not possible.
    """
    if table.sound:
        return
    if not metadata.allocator.metadata.isdisjoint(metadata.decoder.clusters(table.entries)):
        raise ImageFormatError(
            "has an L2 entry that points to the image's own tables", errno=errno.EIO
        )
    table.sound = True


def replace(metadata: Metadata, table: L2Table, at: int, words: Sequence[int]) -> None:
    """Change entries; what they do not lead to any more is given up.

    Space of a plain cluster that no other takes the place of goes back to the file system.

    Args:
        metadata: of an image that is written.
        table: its own, see `own_table`.
        at: number of the first word that is changed, which begins an entry.
        words: the new entries, with their bitmaps where these are extended.
    """
    step = metadata.geometry.words
    if len(words) == 1:
        _give_up(metadata, table.entries[at], words[0])
        metadata.tables.set_one(table, at, words[0])
        return
    old = table.entries[at : at + len(words) : step]
    for before, entry in zip(old, words[::step], strict=True):
        _give_up(metadata, before, entry)
    metadata.tables.set(table, at, words)


def _give_up(metadata: Metadata, before: int, entry: int) -> None:
    """What one entry leads to and another, which takes its place, does not."""
    gone, place = metadata.decoder.stored_at(before), offset_of(entry)
    if gone and not place:
        metadata.refcounts.discarded.add(gone >> metadata.geometry.cluster_bits)
    if before != entry:
        release(metadata, before, place)


def release(metadata: Metadata, entry: int, host: int = 0) -> None:
    """An L2 entry is about to be replaced: give up what it leads to, unless that is at `host`."""
    decoder, refcounts = metadata.decoder, metadata.refcounts
    if compressed(entry):
        refcounts.release_bytes(*decoder.compressed_range(entry))
        return
    old = decoder.stored_at(entry)
    if old and old != host:
        refcounts.release(old >> metadata.geometry.cluster_bits)
