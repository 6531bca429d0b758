"""Where an image's own structures lie: what must never be given out, or written as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tap_qcow2 import layout

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def metadata_clusters(image: Image, *, with_bitmaps: bool = True) -> set[int]:
    """Host clusters that hold the image's own structures: never given out, or written as data.

    The L2 tables of snapshots are not among them, as in QEMU's default: there may be very many.

    Args:
        image: open.
        with_bitmaps: those of persistent bitmaps, too.
    """
    header, bits = image.header, image.cluster_bits
    found = {0}
    _add_range(found, header.l1_table_offset, header.l1_size * 8, bits)
    _add_range(found, header.refcount_table_offset, header.refcount_table_clusters << bits, bits)
    found.update(entry >> bits for entry in image.refcounts.table if entry)
    mask = layout.OFFSET_MASK
    found.update((entry & mask) >> bits for entry in image.tables.l1 if entry & mask)
    if header.crypto is not None:
        offset, length = header.crypto  # checked only where the key is asked for
        _add_range(found, offset, min(length, layout.MAX_CRYPTO_HEADER), bits)
    if header.nb_snapshots:
        from tap_qcow2.snapshottable import check_snapshot_l1, read_snapshots, table_bytes

        snapshots = read_snapshots(image)
        _add_range(found, header.snapshots_offset, table_bytes(snapshots), bits)
        for snapshot in snapshots:
            check_snapshot_l1(image, snapshot)
            _add_range(found, snapshot.l1_offset, snapshot.l1_size * 8, bits)
    if with_bitmaps and header.extension(layout.EXT_BITMAPS) is not None:
        from tap_qcow2.bitmaps import bitmap_ranges_on_disk

        for offset, length in bitmap_ranges_on_disk(image):
            _add_range(found, offset, length, bits)
    return found


def _add_range(found: set[int], offset: int, length: int, bits: int) -> None:
    if length:
        found.update(range(offset >> bits, ((offset + length - 1) >> bits) + 1))
