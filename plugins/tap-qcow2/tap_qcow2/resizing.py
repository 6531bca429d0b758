"""Changing the virtual size.

Growing: first a larger L1 table where one is needed, then zeroes where something old, or a longer
parent, would show; the size in the header comes last. Shrinking: the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tap_qcow2 import layout, words
from tap_qcow2.linking import own_table, release_data
from tap_qcow2.settling import zero_now
from tapcore import SECTOR_SHIFT, NotSupportedError, UsageError

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def resize(image: Image, size: int) -> None:
    """Change the disk's size.

    Args:
        image: open for writing, with nothing in flight.
        size: bytes, a multiple of 512.

    Raises:
        TapError, OSError: the size is as it was.
    """
    header = image.header
    if header.nb_snapshots and header.version < 3:
        raise NotSupportedError(
            "a version 2 image with snapshots cannot be resized: amend compat=1.1, or delete them"
        )
    old = image.size
    if size == old:
        return
    if image.geometry.l1_entries(size) * 8 > layout.MAX_L1_BYTES:
        raise UsageError("a disk of this size needs larger clusters")
    image.begin_writing()
    if header.extension(layout.EXT_BITMAPS) is not None:
        from tap_qcow2.bitmaps import resize_bitmaps

        resize_bitmaps(image, old, size)
    if size > old:
        _grow(image, old, size)
    else:
        _shrink(image, old, size)


def _grow(image: Image, old: int, size: int) -> None:
    entries = image.geometry.l1_entries(size)
    if entries > image.header.l1_size:
        _move_l1(image, entries)
    if image.header.has_data_file:
        image.data_file().truncate_up(size)
    end = _end_of_old(image, old, size)
    if end > old:
        zero_now(image, old >> SECTOR_SHIFT, end >> SECTOR_SHIFT)
    image.writeback.all_now()
    _set_size(image, size)


def _end_of_old(image: Image, old: int, size: int) -> int:
    """Up to where something might show that is not zeroes, bytes."""
    mask = image.geometry.cluster_size - 1
    end = (old + mask) & ~mask
    parent = image.dd.next
    if parent is not None:
        end = max(end, (parent.size << SECTOR_SHIFT) + mask & ~mask)
    return min(end, size)


def _set_size(image: Image, size: int) -> None:
    image.header.size = size
    image.write_header_fields()
    image.size = size
    image.dd.size = size >> SECTOR_SHIFT


def _move_l1(image: Image, entries: int) -> None:
    """A larger L1 table in a new place; on disk before the header points to it."""
    header, tables, refcounts = image.header, image.tables, image.refcounts
    image.writeback.all_now()
    clusters = image.geometry.clusters(entries * 8)
    place = refcounts.allocate_contiguous(clusters)
    refcounts.metadata.update(range(place, place + clusters))
    image.writeback.all_now()  # counted on disk
    offset = place << image.cluster_bits
    l1 = words.zeroes(entries)
    l1[: len(tables.l1)] = tables.l1
    content = words.to_bytes(l1).ljust(clusters << image.cluster_bits, b"\0")
    image.file.write_metadata(offset, content)
    image.flush_file()
    first = header.l1_table_offset >> image.cluster_bits
    old = range(first, first + max(image.geometry.clusters(header.l1_size * 8), 1))
    header.l1_table_offset, header.l1_size = offset, entries
    image.write_header_fields()
    tables.l1, tables.l1_offset = l1, offset
    refcounts.metadata.difference_update(old)
    refcounts.released.extend(old)


def _shrink(image: Image, old: int, size: int) -> None:
    _set_size(image, size)
    first = image.geometry.clusters(size)
    last = image.geometry.clusters(old)
    per_table = 1 << image.geometry.l2_bits
    index = first >> image.geometry.l2_bits
    while index < len(image.tables.l1) and index * per_table < last:
        if image.tables.offset_of(index):
            _cut_table(image, index, max(first - index * per_table, 0))
        index += 1
        image.writeback.when_needed()
        if image.writeback.running:
            image.file.drain()
    if image.header.data_file_raw:
        image.data_file().resize(size)
    image.writeback.all_now()


def _cut_table(image: Image, index: int, keep: int) -> None:
    """Give up what a table maps from its entry `keep` on; all of it with the table itself."""
    tables, step = image.tables, image.geometry.words
    table = own_table(image, index)
    for number in range(keep, 1 << image.geometry.l2_bits):
        entry = table.entries[number * step]
        if not entry and not (image.extended and table.entries[number * step + 1]):
            continue
        if entry & layout.OFFSET_MASK and not entry & layout.COMPRESSED:
            image.writeback.discarded.add((entry & layout.OFFSET_MASK) >> image.cluster_bits)
        release_data(image, entry)
        if image.extended:
            tables.set_extended(table, number, 0, 0)
        else:
            tables.set(table, number, 0)
