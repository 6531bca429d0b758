"""The header: its fields, and how they are written, with what is not known kept.

Source: qcow2.rst, "Header", "Header extensions".
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.layout import Geometry
from tapcore import DiskId, UsageError

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


@attrs.define(eq=False, repr=False)
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

    @property
    def parent(self) -> DiskId | None:
        """What is recorded of the parent; None where the image stands alone."""
        if not self.backing_file:
            return None
        return DiskId(self.backing_file, self.backing_format)

    def become(self, other: Header) -> None:
        """Take over all fields of another one."""
        for field in attrs.fields(Header):
            setattr(self, field.name, getattr(other, field.name))

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
