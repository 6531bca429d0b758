"""Where an image's own structures lie: what must never be given out, or written as data."""

from __future__ import annotations

import errno
import itertools

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.entries import offsets_of
from tap_qcow2.tables.metadata import Metadata
from tapcore import ImageFormatError


class OverlapError(ImageFormatError):
    """Structures of an image lie on top of each other."""


def metadata_clusters(metadata: Metadata, *, with_bitmaps: bool = True) -> set[int]:
    """Host clusters that hold the image's own structures: never given out, or written as data.

    The L2 tables of snapshots are not among them, as in QEMU's default: there may be very many.

    Args:
        metadata: of the image.
        with_bitmaps: those of persistent bitmaps, too.

    Raises:
        OverlapError: two of them lie on top of each other: what is written to one would
            overwrite the other. L2 tables, and the L1 tables of snapshots, may be one. The tables
            and bits of bitmaps may lie anywhere: they are not written where they are.
    """
    header = metadata.header
    bits = header.cluster_bits
    places = _Places(bits)
    places.add("header", 0, 1)
    places.add("L1 table", header.l1_table_offset, header.l1_size * 8)
    length = header.refcount_table_clusters << bits
    places.add("refcount table", header.refcount_table_offset, length)
    for entry in filter(None, metadata.refcounts.table):
        places.add("refcount block", entry, 1)
    if header.crypto is not None:
        offset, length = header.crypto  # checked only where the key is asked for
        places.add("encryption header", offset, min(length, layout.MAX_CRYPTO_HEADER))
    if header.nb_snapshots:
        _add_snapshots(metadata, places)
    places.add_all("L2 table", {each >> bits for each in offsets_of(metadata.tables.l1)})
    if with_bitmaps and header.extension(layout.EXT_BITMAPS) is not None:
        _add_bitmaps(metadata, places)
    return places.found


def _add_snapshots(metadata: Metadata, places: _Places) -> None:
    from tap_qcow2.ondisk.snapshottable import check_snapshot_l1, read_snapshots, table_bytes

    file, header = metadata.file, metadata.header
    snapshots = read_snapshots(file, header)
    places.add("snapshot table", header.snapshots_offset, table_bytes(snapshots))
    for snapshot in snapshots:
        check_snapshot_l1(file, header, snapshot)
    tables = {(each.l1_offset, each.l1_size * 8) for each in snapshots}
    for offset, length in sorted(tables):
        places.add("L1 table of a snapshot", offset, length)


def _add_bitmaps(metadata: Metadata, places: _Places) -> None:
    from tap_qcow2.ondisk.bitmapdirectory import ranges_on_disk

    ranges = ranges_on_disk(metadata.file, metadata.header)
    for offset, length in itertools.islice(ranges, 1):
        places.add("bitmap directory", offset, length)
    for offset, length in ranges:
        places.keep(offset, length)


class _Places:
    """Clusters of structures, none of which may lie on top of another one.

    Args:
        bits: log2 of the cluster size.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self.found: set[int] = set()

    def add(self, name: str, offset: int, length: int) -> None:
        """A structure at an offset (bytes)."""
        if length:
            last = (offset + length - 1) >> self._bits
            self.add_all(name, set(range(offset >> self._bits, last + 1)))

    def keep(self, offset: int, length: int) -> None:
        """A structure at an offset (bytes) that is never written where it lies.

        One on top of another harms nothing but itself: a bitmap is saved elsewhere, or not at all.
        """
        if length:
            last = (offset + length - 1) >> self._bits
            self.found.update(range(offset >> self._bits, last + 1))

    def add_all(self, name: str, clusters: set[int]) -> None:
        """Clusters of structures of one name."""
        if not self.found.isdisjoint(clusters):
            where = min(self.found & clusters) << self._bits
            raise OverlapError(
                f"has its {name} (at {where:#x}) on top of something else: check and repair it",
                errno=errno.EIO,
            )
        self.found |= clusters
