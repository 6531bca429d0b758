"""The header, with every field checked.

Source: QEMU's and blktap's images. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import attrs

from tap_qcow import layout
from tap_qcow.layout import Geometry
from tap_qcow.xen import EXTENSION, XEN_PAGE, XenExtension, unpack_extension
from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError, UsageError

HEADER: Final = struct.Struct(">4sIQIIQBBHIQ")

Read = Callable[[int, int], bytes]
"""`read(offset, length)`: bytes of the file, zeroes past its end."""


@attrs.define
class Header:
    """The header's fields; offsets and sizes in bytes.

    Attributes:
        geometry: of clusters and tables.
        size: of the disk.
        l1_offset: where the L1 table lies.
        backing_file: the parent's name; empty without one.
        backing_offset: where that name lies; 0 without one.
        mtime: of the parent, as some writers record it.
        crypt_method: `layout.CRYPT_*`.
        xen: blktap's extension, where there is one.
    """

    geometry: Geometry
    size: int
    l1_offset: int
    backing_file: str = ""
    backing_offset: int = 0
    mtime: int = 0
    crypt_method: int = layout.CRYPT_NONE
    xen: XenExtension | None = None

    @property
    def sectors(self) -> int:
        """Whole sectors of the disk; QEMU, too, leaves out a last one that is not whole."""
        return self.size >> SECTOR_SHIFT

    @property
    def l1_bytes(self) -> int:
        """The L1 table's entries."""
        return 8 * self.geometry.l1_entries(self.size)

    @property
    def encrypted(self) -> bool:
        """Whether clusters are encrypted."""
        return self.crypt_method == layout.CRYPT_AES

    def places(self) -> list[tuple[int, int]]:
        """What must not be overwritten, as (start, end): header, parent's name, L1 table."""
        found = [
            (0, HEADER.size + (EXTENSION.size if self.xen else 0)),
            (self.l1_offset, self.l1_offset + self.l1_bytes),
        ]
        if self.backing_file:
            length = len(encode_name(self.backing_file))
            found.append((self.backing_offset, self.backing_offset + length))
        return found

    def pack(self) -> bytes:
        """The first 48 bytes of the file."""
        name = encode_name(self.backing_file)
        return HEADER.pack(
            layout.MAGIC,
            layout.VERSION,
            self.backing_offset if name else 0,
            len(name),
            self.mtime,
            self.size,
            self.geometry.cluster_bits,
            self.geometry.l2_bits,
            0,
            self.crypt_method,
            self.l1_offset,
        )


def encode_name(name: str) -> bytes:
    """A parent's name as it is stored.

    Raises:
        UsageError: it is longer than the format allows.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > layout.MAX_NAME:
        raise UsageError(f"a parent's name may have {layout.MAX_NAME} bytes at most")
    return encoded


def read_header(read: Read, file_size: int) -> Header:
    """Read and check the header.

    Args:
        read: reads the file.
        file_size: bytes.

    Raises:
        ImageFormatError: not a qcow image, or a field has a value that is not possible.
        NotSupportedError: another version, or an unknown encryption.
    """
    head = read(0, HEADER.size)
    if file_size < HEADER.size or not head.startswith(layout.MAGIC):
        raise ImageFormatError("is not a qcow image")
    (
        _,
        version,
        backing_offset,
        backing_size,
        mtime,
        size,
        cluster_bits,
        l2_bits,
        _,
        crypt_method,
        l1_offset,
    ) = HEADER.unpack(head)
    if version != layout.VERSION:
        raise NotSupportedError(f"is a qcow image of version {version}, not 1 (try qcow2:)")
    header = Header(
        _geometry(cluster_bits, l2_bits),
        size,
        l1_offset,
        backing_offset=backing_offset,
        mtime=mtime,
        crypt_method=crypt_method,
    )
    _check(header, file_size)
    if backing_offset:
        header.backing_file = _read_name(read, backing_offset, backing_size, file_size)
    header.xen = _read_extension(read, header)
    return header


def _geometry(cluster_bits: int, l2_bits: int) -> Geometry:
    if not layout.MIN_CLUSTER_BITS <= cluster_bits <= layout.MAX_CLUSTER_BITS:
        raise ImageFormatError(f"has an impossible cluster size (2^{cluster_bits} bytes)")
    if not layout.MIN_L2_BITS <= l2_bits <= layout.MAX_L2_BITS:
        raise ImageFormatError(f"has L2 tables of an impossible size (2^{l2_bits} entries)")
    return Geometry(cluster_bits, l2_bits)


def _check(header: Header, file_size: int) -> None:
    if header.crypt_method not in (layout.CRYPT_NONE, layout.CRYPT_AES):
        raise NotSupportedError(f"is encrypted in an unknown way ({header.crypt_method})")
    if header.size < 2 or header.size >= 1 << 63:
        raise ImageFormatError(f"has an impossible disk size ({header.size} bytes)")
    if header.l1_bytes > layout.MAX_L1_BYTES:
        raise ImageFormatError(f"has an L1 table that is too large ({header.l1_bytes} bytes)")
    if header.l1_offset < HEADER.size or header.l1_offset + header.l1_bytes > file_size:
        raise ImageFormatError("has its L1 table outside of the file")


def _read_name(read: Read, offset: int, length: int, file_size: int) -> str:
    if length > layout.MAX_NAME:
        raise ImageFormatError(f"names a parent with {length} bytes, which is too long")
    if offset < HEADER.size or offset + length > file_size:
        raise ImageFormatError("has its parent's name outside of the file")
    return read(offset, length).split(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_extension(read: Read, header: Header) -> XenExtension | None:
    """blktap's extension, where the image can be one of its own: with the L1 table at a page.

    blktap itself looks at it only while the image has no parent.
    """
    if header.l1_offset % XEN_PAGE or 0 < header.backing_offset < HEADER.size + EXTENSION.size:
        return None
    return unpack_extension(read(HEADER.size, EXTENSION.size))
