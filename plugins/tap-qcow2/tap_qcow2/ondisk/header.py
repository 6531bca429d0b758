"""The header: parsed with every field checked, and written back with what is not known kept.

Source: qcow2.rst, "Header", "Header extensions".
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.layout import Geometry
from tapcore import ImageFormatError, NotSupportedError, UsageError

VERSION_2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
VERSION_3: Final = struct.Struct(">QQQII")
COMPRESSION: Final = struct.Struct(">B7x")
EXTENSION: Final = struct.Struct(">II")
CRYPTO: Final = struct.Struct(">QQ")
FEATURE: Final = struct.Struct(">BB46s")

V2_LENGTH: Final = VERSION_2.size
V3_LENGTH: Final = V2_LENGTH + VERSION_3.size
FULL_LENGTH: Final = V3_LENGTH + COMPRESSION.size
ATOMIC: Final = 512
"""Bytes of a sector, which reaches the disk as one."""

FIXED_BYTES: Final = 1 << layout.MAX_CLUSTER_BITS
"""The header, its extensions and the parent's name lie in the first cluster."""


@attrs.define
class Header:
    """The header's fields, offsets and sizes in bytes unless their name says otherwise.

    Attributes:
        extensions: (type, content) of those that are not fields below, in their order.
        feature_names: (type, bit): name, from the image's own table.
        tail: what follows the fields known here inside `header_length`, kept as it is.
        length: `header_length`.
        backing_offset: where the parent's name is to lie in the file; 0 without one.
        stored_name: where it lies on disk: (first byte, the one behind the last).
    """

    version: int = 3
    backing_file: str = ""
    backing_format: str = ""
    cluster_bits: int = 16
    size: int = 0
    crypt_method: int = layout.CRYPT_NONE
    l1_size: int = 0
    l1_table_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression_type: int = 0
    data_file: str = ""
    crypto: tuple[int, int] | None = None
    extensions: list[tuple[int, bytes]] = attrs.field(factory=list)
    feature_names: dict[tuple[int, int], str] = attrs.field(factory=dict)
    tail: bytes = b""
    length: int = FULL_LENGTH
    backing_offset: int = 0
    stored_name: tuple[int, int] = (0, 0)

    @property
    def geometry(self) -> Geometry:
        """What follows from the cluster size."""
        return Geometry(self.cluster_bits, self.extended_l2)

    @property
    def extended_l2(self) -> bool:
        """L2 entries with subclusters."""
        return bool(self.incompatible & layout.INCOMPAT_EXTENDED_L2)

    @property
    def lazy_refcounts(self) -> bool:
        """Refcounts on disk may be behind while the dirty bit is set."""
        return bool(self.compatible & layout.COMPAT_LAZY_REFCOUNTS)

    @property
    def dirty(self) -> bool:
        """It was not closed: refcounts may be wrong."""
        return bool(self.incompatible & layout.INCOMPAT_DIRTY)

    @property
    def corrupt(self) -> bool:
        """Somebody found damage: not to be written."""
        return bool(self.incompatible & layout.INCOMPAT_CORRUPT)

    @property
    def has_data_file(self) -> bool:
        """Clusters of data lie in another file."""
        return bool(self.incompatible & layout.INCOMPAT_DATA_FILE)

    @property
    def data_file_raw(self) -> bool:
        """That file is at the same time a raw image of the disk."""
        return self.has_data_file and bool(self.autoclear & layout.AUTOCLEAR_DATA_FILE_RAW)

    def extension(self, kind: int) -> bytes | None:
        """Content of an extension that is kept as it is."""
        return next((content for found, content in self.extensions if found == kind), None)

    def set_extension(self, kind: int, content: bytes | None) -> None:
        """Replace, add or (None) remove one."""
        self.extensions = [(k, c) for k, c in self.extensions if k != kind]
        if content is not None:
            self.extensions.append((kind, content))

    # ---- writing ----------------------------------------------------------------------------

    def fields(self) -> bytes:
        """The fixed part: for changes that must reach the disk as one sector."""
        name = _encoded(self.backing_file)
        packed = VERSION_2.pack(
            layout.MAGIC,
            self.version,
            self.backing_offset,
            len(name),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_table_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        )
        if self.version == 2:
            return packed
        packed += VERSION_3.pack(
            self.incompatible,
            self.compatible,
            self.autoclear,
            self.refcount_order,
            self.length,
        )
        if self.length < FULL_LENGTH:
            return packed
        return packed + COMPRESSION.pack(self.compression_type) + self.tail

    def serialize(self) -> bytes:
        """Header, extensions and parent's name, as they lie at the start of the file.

        Raises:
            UsageError: they do not fit in one cluster.
        """
        head, name = self.parts(with_names=True)
        return head.ljust(self.backing_offset, b"\0") + name

    def parts(self, *, with_names: bool) -> tuple[bytes, bytes]:
        """Header with extensions, for the file's start; and the name for `backing_offset`.

        Args:
            with_names: of features, too; else only where all fits in a sector, so that no crash
                can tear it.

        Raises:
            UsageError: they do not fit in one cluster.
        """
        name = _encoded(self.backing_file)
        if len(name) > layout.MAX_BACKING_NAME:
            raise UsageError(f"a parent's name may have {layout.MAX_BACKING_NAME} bytes at most")
        if self.version == 2:
            self.length = V2_LENGTH
        elif self.length < V3_LENGTH or self.compression_type:
            self.length = FULL_LENGTH + len(self.tail)
        body = self._packed_extensions(with_names=True)
        if not with_names and self.length + len(body) > ATOMIC:
            body = self._packed_extensions(with_names=False)
        end = self.length + len(body)
        self.backing_offset = self._place_of_name(end, len(name)) if name else 0
        if max(end, self.backing_offset + len(name)) > 1 << self.cluster_bits:
            raise UsageError("the parent's name does not fit into the header's cluster")
        return self.fields() + body, name

    def _place_of_name(self, end: int, length: int) -> int:
        """Behind the extensions, and not over the present one, which counts until sector 0 changes.

        Args:
            end: of the extensions, bytes.
            length: of the name, bytes.
        """
        start, stop = self.stored_name
        if end + length <= ATOMIC or end >= stop or start >= end + length:
            return end
        other = -(-stop // ATOMIC) * ATOMIC
        return other if other + length <= 1 << self.cluster_bits else end

    def _packed_extensions(self, *, with_names: bool) -> bytes:
        found: list[tuple[int, bytes]] = []
        if self.backing_file and self.backing_format:
            found.append((layout.EXT_BACKING_FORMAT, self.backing_format.encode()))
        if self.data_file:
            found.append((layout.EXT_DATA_FILE, _encoded(self.data_file)))
        if self.crypto is not None:
            found.append((layout.EXT_CRYPTO, CRYPTO.pack(*self.crypto)))
        if with_names and self.version >= 3 and self.cluster_bits > layout.MIN_CLUSTER_BITS:
            found.append((layout.EXT_FEATURE_NAMES, self._feature_table()))
        found += [*self.extensions, (layout.EXT_END, b"")]
        return b"".join(_pack_extension(kind, content) for kind, content in found)

    def _feature_table(self) -> bytes:
        names = layout.FEATURE_NAMES | self.feature_names
        return b"".join(
            FEATURE.pack(kind, bit, name.encode()[:46]) for (kind, bit), name in names.items()
        )


def _encoded(name: str) -> bytes:
    """A file's name as its bytes, whatever they are."""
    return name.encode("utf-8", "surrogateescape")


def _pack_extension(kind: int, content: bytes) -> bytes:
    return EXTENSION.pack(kind, len(content)) + content + bytes(-len(content) % 8)


# ---- reading ---------------------------------------------------------------------------------


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
