"""Forgetting all content: every cluster unallocated again, as after a commit.

The L1 table is emptied in one step: a new table of zeroes, then the header that points to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tap_qcow2.ondisk import bigendian
from tap_qcow2.tables.links import check_for_writing, release
from tap_qcow2.tables.structures import metadata_clusters

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def make_empty(image: Image) -> None:
    """Make every cluster of the current state unallocated; snapshots stay as they are.

    Raises:
        TapError, OSError: it failed, and nothing has changed; or it could only not give back all
            that became free.
    """
    image.begin_change()
    image.writeback.all_now()
    old_offset = image.header.l1_table_offset
    old_clusters = image.geometry.clusters(image.header.l1_size * 8)
    if not old_clusters:  # a disk without a sector
        return
    place = image.allocator.allocate_contiguous(old_clusters)
    offset = place << image.cluster_bits
    try:
        image.writeback.all_now()  # refcounts of the new table
        image.file.write_metadata(offset, bytes(old_clusters << image.cluster_bits))
        image.metadata.flush()
        _release_all(image)
        image.header_writer.change(l1_table_offset=offset)
    except BaseException:
        image.refcounts.released.clear()
        if not image.broken:
            image.give_back(offset, old_clusters)
        raise
    first = old_offset >> image.cluster_bits
    image.refcounts.released.extend(range(first, first + old_clusters))
    image.refcounts.discarded.update(image.refcounts.released)
    image.tables.show(bigendian.zeroes(image.header.l1_size), offset)
    image.allocator.metadata = metadata_clusters(image.metadata)
    image.writeback.all_now()


def _release_all(image: Image) -> None:
    """Note everything that the current L1 table leads to as given up."""
    step = image.geometry.words
    for index in range(len(image.tables.l1)):
        if not image.tables.offset_of(index):
            continue
        table = image.tables.wait(index)
        check_for_writing(image.metadata, table)
        for at in range(0, len(table.entries), step):
            if table.entries[at]:
                release(image.metadata, table.entries[at])
        image.refcounts.release(table.offset >> image.cluster_bits)
