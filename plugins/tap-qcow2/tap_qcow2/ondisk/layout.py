"""The numbers of the format: magic, feature bits, limits, geometry.

Source: QEMU, docs/interop/qcow2.rst. The limits are those that QEMU keeps.
"""

from __future__ import annotations

from typing import Final

import attrs

from tapcore import SECTOR_SHIFT

MAGIC: Final = b"QFI\xfb"

# ---- feature bits ----------------------------------------------------------------------------

INCOMPAT_OFFSET: Final = 72
"""Of the field in the header, bytes."""

INCOMPAT_DIRTY: Final = 1 << 0
INCOMPAT_CORRUPT: Final = 1 << 1
INCOMPAT_DATA_FILE: Final = 1 << 2
INCOMPAT_COMPRESSION: Final = 1 << 3
INCOMPAT_EXTENDED_L2: Final = 1 << 4
INCOMPAT_KNOWN: Final = (1 << 5) - 1

COMPAT_LAZY_REFCOUNTS: Final = 1 << 0

AUTOCLEAR_BITMAPS: Final = 1 << 0
AUTOCLEAR_DATA_FILE_RAW: Final = 1 << 1
AUTOCLEAR_KNOWN: Final = (1 << 2) - 1

FEATURE_NAMES: Final[dict[tuple[int, int], str]] = {
    (0, 0): "dirty bit",
    (0, 1): "corrupt bit",
    (0, 2): "external data file",
    (0, 3): "compression type",
    (0, 4): "extended L2 entries",
    (1, 0): "lazy refcounts",
    (2, 0): "bitmaps",
    (2, 1): "raw external data",
}
"""(type, bit) of the features that are known here: 0 incompatible, 1 compatible, 2 autoclear."""

# ---- header extensions -----------------------------------------------------------------------

EXT_END: Final = 0x00000000
EXT_BACKING_FORMAT: Final = 0xE2792ACA
EXT_FEATURE_NAMES: Final = 0x6803F857
EXT_BITMAPS: Final = 0x23852875
EXT_CRYPTO: Final = 0x0537BE77
EXT_DATA_FILE: Final = 0x44415441

# ---- values of header fields -----------------------------------------------------------------

CRYPT_NONE: Final = 0
CRYPT_AES: Final = 1
CRYPT_LUKS: Final = 2
CRYPT_NAMES: Final = {CRYPT_NONE: "none", CRYPT_AES: "aes", CRYPT_LUKS: "luks"}

COMPRESSION_NAMES: Final = ("zlib", "zstd")

# ---- limits ----------------------------------------------------------------------------------

MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
MIN_EXTENDED_CLUSTER_BITS: Final = 14
MAX_L1_BYTES: Final = 32 << 20
MAX_REFTABLE_BYTES: Final = 8 << 20
MAX_REFCOUNT_ORDER: Final = 6
MAX_SNAPSHOTS: Final = 65536
MAX_SNAPSHOT_TABLE_BYTES: Final = 1024 * MAX_SNAPSHOTS
MAX_SNAPSHOT_EXTRA: Final = 1024
MAX_BITMAPS: Final = 65535
MAX_BITMAP_DIRECTORY_BYTES: Final = 1024 * MAX_BITMAPS
MAX_BACKING_NAME: Final = 1023
MAX_CRYPTO_HEADER: Final = 64 << 20
SUBCLUSTERS: Final = 32
"""Of a cluster with an extended L2 entry."""


@attrs.frozen(eq=False, repr=False)
class Geometry:
    """What follows from the cluster size and the kind of L2 entries.

    Attributes:
        cluster_bits: log2 of the cluster size.
        extended: L2 entries are 16 bytes, with a bitmap of 32 subclusters each.
        cluster_size: bytes.
        cluster_sectors: sectors in a cluster.
        cluster_shift: from a sector number to a cluster number.
        l2_bits: log2 of the clusters that one L2 table maps.
        words: 64-bit words in an L2 entry, 1 or 2.
        table_words: 64-bit words in an L2 table.
        unit: bytes that are allocated, or zero, independently: a cluster or a subcluster.
        table_shift: from a sector number to an L1 table's entry.
        entry_mask: of a cluster's number in its L2 table.
        sector_mask: of a sector's number in its cluster.
    """

    cluster_bits: int
    extended: bool
    cluster_size: int = attrs.field(init=False)
    cluster_sectors: int = attrs.field(init=False)
    cluster_shift: int = attrs.field(init=False)
    l2_bits: int = attrs.field(init=False)
    words: int = attrs.field(init=False)
    table_words: int = attrs.field(init=False)
    unit: int = attrs.field(init=False)
    table_shift: int = attrs.field(init=False)
    entry_mask: int = attrs.field(init=False)
    sector_mask: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        bits = self.cluster_bits
        l2_bits = bits - 4 if self.extended else bits - 3
        for name, value in (
            ("cluster_size", 1 << bits),
            ("cluster_sectors", 1 << (bits - SECTOR_SHIFT)),
            ("cluster_shift", bits - SECTOR_SHIFT),
            ("l2_bits", l2_bits),
            ("words", 2 if self.extended else 1),
            ("table_words", 1 << (bits - 3)),
            ("unit", (1 << bits) // SUBCLUSTERS if self.extended else 1 << bits),
            ("table_shift", bits - SECTOR_SHIFT + l2_bits),
            ("entry_mask", (1 << l2_bits) - 1),
            ("sector_mask", (1 << (bits - SECTOR_SHIFT)) - 1),
        ):
            object.__setattr__(self, name, value)

    def clusters(self, size: int) -> int:
        """Clusters that `size` bytes take."""
        return (size + self.cluster_size - 1) >> self.cluster_bits

    def l1_entries(self, size: int) -> int:
        """L1 entries that a disk of `size` bytes needs."""
        bits = self.cluster_bits + self.l2_bits
        return (size + (1 << bits) - 1) >> bits
