"""The numbers of the format: magic, limits, geometry, and the meaning of table entries.

Source: the images that QEMU (block driver "qcow") and Xen's blktap write. The limits are QEMU's,
but for that of the L1 table, where QEMU would take up to 2 GiB.
"""

from __future__ import annotations

from typing import Final

import attrs

from tapcore import SECTOR_SHIFT

MAGIC: Final = b"QFI\xfb"
VERSION: Final = 1

MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 16
MIN_L2_BITS: Final = 6
MAX_L2_BITS: Final = 13
MAX_NAME: Final = 1023
"""Bytes of a parent's name."""

MAX_L1_BYTES: Final = 64 << 20
"""16 TiB of disk with the tables that QEMU makes."""

CRYPT_NONE: Final = 0
CRYPT_AES: Final = 1

COMPRESSED: Final = 1 << 63
"""Of an L2 entry. Otherwise it is the byte offset of a cluster in the file, or 0 for a hole."""


@attrs.frozen
class Geometry:
    """What follows from the sizes of clusters and L2 tables.

    Attributes:
        cluster_bits: log2 of the cluster size.
        l2_bits: log2 of the entries in an L2 table.
        cluster_size: bytes.
        cluster_shift: from a sector number to a cluster number.
        sector_mask: of a sector's number inside its cluster.
        table_bytes: an L2 table's.
        table_shift: from a sector number to that of its L1 entry.
        entry_mask: of a cluster's number inside its L2 table.
    """

    cluster_bits: int
    l2_bits: int
    cluster_size: int = attrs.field(init=False)
    cluster_shift: int = attrs.field(init=False)
    sector_mask: int = attrs.field(init=False)
    table_bytes: int = attrs.field(init=False)
    table_shift: int = attrs.field(init=False)
    entry_mask: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        shift = self.cluster_bits - SECTOR_SHIFT
        for name, value in (
            ("cluster_size", 1 << self.cluster_bits),
            ("cluster_shift", shift),
            ("sector_mask", (1 << shift) - 1),
            ("table_bytes", 8 << self.l2_bits),
            ("table_shift", shift + self.l2_bits),
            ("entry_mask", (1 << self.l2_bits) - 1),
        ):
            object.__setattr__(self, name, value)

    def l1_entries(self, size: int) -> int:
        """L1 entries that a disk of `size` bytes needs."""
        bits = self.cluster_bits + self.l2_bits
        return (size + (1 << bits) - 1) >> bits

    def align(self, offset: int) -> int:
        """The first place for a cluster at or after a byte offset."""
        return (offset + self.cluster_size - 1) & -self.cluster_size

    def compressed(self, entry: int) -> tuple[int, int]:
        """Where a compressed cluster lies in the file: (byte offset, length in bytes)."""
        shift = 63 - self.cluster_bits
        return entry & ((1 << shift) - 1), (entry >> shift) & (self.cluster_size - 1)

    def compressed_entry(self, offset: int, length: int) -> int:
        """The L2 entry of a compressed cluster; `length` is smaller than a cluster."""
        return COMPRESSED | length << (63 - self.cluster_bits) | offset

    @property
    def compressed_limit(self) -> int:
        """Compressed clusters must begin before this byte offset."""
        return 1 << (63 - self.cluster_bits)


STANDALONE: Final = Geometry(cluster_bits=12, l2_bits=9)
CHILD: Final = Geometry(cluster_bits=9, l2_bits=12)
"""What QEMU and blktap make. A child has clusters of one sector, because neither of the two copies
the rest of a cluster from the parent when it writes a part of it."""
