"""What Xen's blktap keeps behind the header of its images.

Source: blktap's images. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

EXTENSION: Final = struct.Struct(">4s4sII")
EXTENSION_MAGIC: Final = b"XEN\xfb"
XEN_SPARSE: Final = 1
XEN_BIG_ENDIAN: Final = 2
XEN_PAGE: Final = 4096


@attrs.define
class XenExtension:
    """blktap's extension of the header.

    While `checksum` is that of the L1 table, and `min_cluster_alloc` the number of entries in an L2
    table, blktap takes it that clusters were allocated a whole L2 table at a time, and computes
    where one lies without reading the table.

    Attributes:
        checksum: four bytes.
        min_cluster_alloc: clusters that are allocated at a time.
        flags: `XEN_SPARSE`, and since 2010 `XEN_BIG_ENDIAN` (of the L1 table).
    """

    checksum: bytes
    min_cluster_alloc: int
    flags: int

    def pack(self) -> bytes:
        """As it lies in the file, at offset 48."""
        return EXTENSION.pack(EXTENSION_MAGIC, self.checksum, self.min_cluster_alloc, self.flags)

    def for_changes(self, *, little: bool) -> XenExtension | None:
        """What it must say before a table changes; None where it says so already.

        blktap's program must look into the L2 tables, and know the L1 table's byte order.

        Args:
            little: the L1 table is little-endian.
        """
        flags = self.flags if little else self.flags | XEN_BIG_ENDIAN
        changed = attrs.evolve(self, min_cluster_alloc=1, flags=flags)
        return None if changed == self else changed


def unpack_extension(content: bytes) -> XenExtension | None:
    """The extension in the bytes behind a header, where there is one."""
    magic, checksum, min_cluster_alloc, flags = EXTENSION.unpack(content)
    if magic != EXTENSION_MAGIC:
        return None
    return XenExtension(checksum, min_cluster_alloc, flags)


def xen_checksum(l1: bytes) -> bytes:
    """The checksum of an L1 table, given as big-endian bytes, its entries alone.

    blktap loads the first four bytes of an MD5 as a little-endian number and stores that
    big-endian, so they are reversed.
    """
    import hashlib  # not loaded for images that have no such thing

    return hashlib.md5(l1, usedforsecurity=False).digest()[3::-1]
