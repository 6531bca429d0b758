"""Reading the header: every field is checked.

Source: qcow2.rst, "Header", "Header extensions".
"""

from __future__ import annotations

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import (
    COMPRESSION,
    CRYPTO,
    EXTENSION,
    FEATURE,
    FULL_LENGTH,
    V2_LENGTH,
    V3_LENGTH,
    VERSION_2,
    VERSION_3,
    Header,
)
from tapcore import ImageFormatError, NotSupportedError


def parse_header(
    head: bytes, *, file_size: int, to_check: bool = False, content_only: bool = False
) -> Header:
    """Read and check the header.

    Args:
        head: the file's start: the first cluster, or all of a shorter file.
        file_size: bytes.
        to_check: only metadata is wanted, perhaps of a damaged image: the L1 table may reach behind
            the file's end; a refcount table in an impossible place is taken as having no clusters.
        content_only: what the disk holds is to be read, of an image that may be damaged: refcounts
            and snapshots in impossible places are taken as none.

    Raises:
        ImageFormatError: not a qcow2 image, or a field has a value that is not possible.
        NotSupportedError: an incompatible feature is not known; it is named.
    """
    if len(head) < V2_LENGTH or not head.startswith(layout.MAGIC):
        raise ImageFormatError("is not a qcow2 image")
    header, backing_size = _unpack_fields(head)
    _check_fields(header)
    head = head[: 1 << header.cluster_bits]
    _parse_extensions(header, head)
    unknown = header.incompatible & ~layout.INCOMPAT_KNOWN
    if unknown:
        raise NotSupportedError(f"needs features that are not known here: {_names(header)}")
    _check_features(header)
    header.backing_file = _backing_name(head, header, backing_size)
    if not header.backing_file:
        header.backing_format = ""
    _check_l1_table(header, 0 if to_check else header.l1_size * 8, file_size)
    try:
        _check_refcount_table(header, file_size)
    except ImageFormatError:
        if not (to_check or content_only):
            raise
        header.refcount_table_offset = header.refcount_table_clusters = 0
    try:
        _check_snapshot_table(header, file_size)
    except ImageFormatError:
        if not content_only:
            raise
        header.nb_snapshots = 0
    return header


def _unpack_fields(head: bytes) -> tuple[Header, int]:
    header = Header()
    (
        _,
        header.version,
        header.backing_offset,
        backing_size,
        header.cluster_bits,
        header.size,
        header.crypt_method,
        header.l1_size,
        header.l1_table_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.nb_snapshots,
        header.snapshots_offset,
    ) = VERSION_2.unpack_from(head)
    if header.version not in (2, 3):
        raise NotSupportedError(f"is a qcow image of version {header.version}; 2 and 3 are known")
    if header.version == 3:
        if len(head) < V3_LENGTH:
            raise ImageFormatError("ends inside its header")
        _unpack_version_3(header, head)
    else:
        header.length = V2_LENGTH
    return header, backing_size


def _unpack_version_3(header: Header, head: bytes) -> None:
    (
        header.incompatible,
        header.compatible,
        header.autoclear,
        header.refcount_order,
        length,
    ) = VERSION_3.unpack_from(head, V2_LENGTH)
    if length < V3_LENGTH or length % 8 or length > min(len(head), 1 << 12):
        raise ImageFormatError(f"has an impossible header length of {length} bytes")
    header.length = length
    if length >= FULL_LENGTH:
        (header.compression_type,) = COMPRESSION.unpack_from(head, V3_LENGTH)
        header.tail = head[FULL_LENGTH:length]
        if any(header.tail):
            raise NotSupportedError("has header fields that are not known here")


def _check_fields(header: Header) -> None:
    bits = header.cluster_bits
    if not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
        raise ImageFormatError(f"has an impossible cluster size (2^{bits} bytes)")
    if header.refcount_order > layout.MAX_REFCOUNT_ORDER:
        raise ImageFormatError(f"has an impossible refcount width (2^{header.refcount_order} bits)")
    if header.crypt_method not in layout.CRYPT_NAMES:
        raise NotSupportedError(f"is encrypted in an unknown way ({header.crypt_method})")


def _check_features(header: Header) -> None:
    compressed_other = bool(header.incompatible & layout.INCOMPAT_COMPRESSION)
    if bool(header.compression_type) != compressed_other:
        raise ImageFormatError("has a compression type that contradicts its feature bits")
    if header.compression_type >= len(layout.COMPRESSION_NAMES):
        raise NotSupportedError(f"uses an unknown compression (type {header.compression_type})")
    if header.extended_l2 and header.cluster_bits < layout.MIN_EXTENDED_CLUSTER_BITS:
        raise ImageFormatError("has extended L2 entries, but clusters of less than 16 KiB")
    if header.data_file and not header.has_data_file:
        header.data_file = ""  # left over: the feature bit decides


def _names(header: Header) -> str:
    """The incompatible features that are not known, as the image itself names them."""
    unknown = header.incompatible & ~layout.INCOMPAT_KNOWN
    bits = [bit for bit in range(64) if unknown >> bit & 1]
    return ", ".join(header.feature_names.get((0, bit), f"bit {bit}") for bit in bits)


def _parse_extensions(header: Header, head: bytes) -> None:
    at = header.length
    end = min(len(head), header.backing_offset) if header.backing_offset else len(head)
    while at + EXTENSION.size <= end:
        kind, length = EXTENSION.unpack_from(head, at)
        at += EXTENSION.size
        if kind == layout.EXT_END:
            return
        if length > end - at:
            raise ImageFormatError("has a header extension that ends outside of the header")
        _take_extension(header, kind, head[at : at + length])
        at += length + -length % 8


def _take_extension(header: Header, kind: int, content: bytes) -> None:
    if kind == layout.EXT_BACKING_FORMAT:
        if len(content) > 64:
            raise ImageFormatError("has a name of its parent's format that is too long")
        header.backing_format = _text(content)
    elif kind == layout.EXT_DATA_FILE:
        header.data_file = _text(content)
    elif kind == layout.EXT_CRYPTO:
        if len(content) != CRYPTO.size:
            raise ImageFormatError("has an encryption header extension of a wrong length")
        header.crypto = CRYPTO.unpack(content)
    elif kind == layout.EXT_FEATURE_NAMES:
        usable = content[: len(content) // FEATURE.size * FEATURE.size]
        for feature, bit, name in FEATURE.iter_unpack(usable):
            text = name.rstrip(b"\0").decode("utf-8", "replace")
            header.feature_names[feature, bit] = text
    else:
        header.extensions.append((kind, content))


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _backing_name(head: bytes, header: Header, size: int) -> str:
    offset = header.backing_offset
    if not offset or not size:
        return ""
    if size > min(layout.MAX_BACKING_NAME, (1 << header.cluster_bits) - V2_LENGTH):
        raise ImageFormatError(f"names a parent with {size} bytes, which is too long")
    if offset < V2_LENGTH or offset + size > len(head):
        raise ImageFormatError("has its parent's name outside of the header's cluster")
    header.stored_name = (offset, offset + size)
    return head[offset : offset + size].decode("utf-8", "surrogateescape")


def _check_l1_table(header: Header, length: int, file_size: int) -> None:
    """It must be large enough, begin at a cluster's boundary, and so many bytes lie in the file."""
    if header.l1_size * 8 > layout.MAX_L1_BYTES:
        raise ImageFormatError(f"has an L1 table that is too large ({header.l1_size} entries)")
    if header.geometry.l1_entries(header.size) > header.l1_size:
        raise ImageFormatError("has an L1 table that is too small for its size")
    _check_place(header, "L1 table", header.l1_table_offset, length, file_size)


def _check_snapshot_table(header: Header, file_size: int) -> None:
    if header.nb_snapshots > layout.MAX_SNAPSHOTS:
        raise ImageFormatError(f"has too many snapshots ({header.nb_snapshots})")
    if header.nb_snapshots:
        _check_place(header, "snapshot table", header.snapshots_offset, 1, file_size)


def _check_refcount_table(header: Header, file_size: int) -> None:
    length = header.refcount_table_clusters << header.cluster_bits
    if length > layout.MAX_REFTABLE_BYTES:
        raise ImageFormatError(f"has a refcount table that is too large ({length} bytes)")
    if not length:
        raise ImageFormatError("has no refcount table")
    _check_place(header, "refcount table", header.refcount_table_offset, 8, file_size)


def _check_place(header: Header, what: str, offset: int, length: int, file_size: int) -> None:
    if offset % (1 << header.cluster_bits):
        raise ImageFormatError(f"has its {what} at an offset that is not a cluster's ({offset})")
    if length and (not offset or offset > file_size or length > file_size - offset):
        raise ImageFormatError(f"has its {what} outside of the file ({length} bytes at {offset})")
