"""Changing the virtual size.

Growing: first a larger L1 table where one is needed, then zeroes where something old, or a longer
parent, would show; the size in the header comes last. Shrinking: the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tap_qcow2.change.zerofill import zero_now
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.tables.links import own_table, replace
from tapcore import SECTOR_SHIFT, NotSupportedError, UsageError

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def resize(image: Image, size: int) -> None:
    """Change the disk's size.

    Args:
        image: open for writing, with nothing in flight.
        size: bytes, a multiple of 512.

    Raises:
        TapError, OSError: the size is as it was; or it is smaller, and what lies past its end is
            given up when the disk grows again.
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
    image.begin_change()
    if header.extension(layout.EXT_BITMAPS) is not None:
        from tap_qcow2.bitmaps.resize import resize_bitmaps

        resize_bitmaps(image, old, size)
    if size > old:
        _grow(image, old, size)
    else:
        _shrink(image, size)


def _grow(image: Image, old: int, size: int) -> None:
    _cut(image, old)
    entries = image.geometry.l1_entries(size)
    if entries > image.header.l1_size:
        _move_l1(image, entries)
    if image.header.has_data_file:
        image.data.truncate_up(size)
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
    image.header_writer.change(size=size)
    image.size = size
    image.dd.size = size >> SECTOR_SHIFT


def _move_l1(image: Image, entries: int) -> None:
    """A larger L1 table in a new place; on disk before the header points to it."""
    header, tables, allocator = image.header, image.tables, image.allocator
    image.writeback.all_now()
    clusters = image.geometry.clusters(entries * 8)
    place = allocator.allocate_contiguous(clusters)
    offset = place << image.cluster_bits
    l1 = bigendian.zeroes(entries)
    l1[: len(tables.l1)] = tables.l1
    content = bigendian.to_bytes(l1).ljust(clusters << image.cluster_bits, b"\0")
    first = header.l1_table_offset >> image.cluster_bits
    old = range(first, first + image.geometry.clusters(header.l1_size * 8))  # perhaps none
    try:
        image.writeback.all_now()  # counted on disk
        image.file.write_metadata(offset, content)
        image.metadata.flush()
        image.header_writer.change(l1_table_offset=offset, l1_size=entries)
    except BaseException:
        if not image.broken:
            image.give_back(offset, clusters)
        raise
    tables.move_l1(l1, offset)
    allocator.metadata.update(range(place, place + clusters))
    allocator.metadata.difference_update(old)
    image.refcounts.released.extend(old)


def _shrink(image: Image, size: int) -> None:
    _set_size(image, size)
    _cut(image, size)
    if image.header.data_file_raw:
        image.data.resize(size)
    image.writeback.all_now()


def _cut(image: Image, size: int) -> None:
    """Give up all clusters behind a size (bytes)."""
    tables, bits = image.tables, image.geometry.l2_bits
    first = image.geometry.clusters(size)
    for index in range(first >> bits, len(tables.l1)):
        if tables.l1[index]:
            _cut_table(image, index, max(first - (index << bits), 0))
            image.writeback.when_needed()
            if image.writeback.running:
                image.file.drain()


def _cut_table(image: Image, index: int, keep: int) -> None:
    """Give up what a table maps from its entry `keep` on; all of it with the table itself."""
    tables, step = image.tables, image.geometry.words
    if not tables.offset_of(index) or not any(tables.wait(index).entries[keep * step :]):
        return
    table = own_table(image.metadata, index)
    replace(image.metadata, table, keep * step, [0] * (len(table.entries) - keep * step))
