"""An image's own tables in memory, and the file in which they lie."""

from __future__ import annotations

from collections.abc import Callable

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.header import Header
from tap_qcow2.tables.allocator import Allocator
from tap_qcow2.tables.l2tables import L2Tables
from tap_qcow2.tables.refcounts import Refcounts
from tapcore import ImageFile


class Metadata:
    """Header, L1 and L2 tables, refcounts: what they are to be; most of it is on disk.

    Args:
        file: the image file.
        header: of it.
        cache: bytes of L2 tables to keep; None: the default.
        on_cut: see `L2Tables`.

    Attributes:
        file: the image file.
        header: as it is to be.
        geometry: sizes and shifts.
        decoder: of L2 entries.
        tables: L1 and L2 tables.
        refcounts: of host clusters.
        allocator: gives out host clusters.
    """

    def __init__(
        self,
        file: ImageFile,
        header: Header,
        cache: int | None = None,
        on_cut: Callable[[str], None] | None = None,
    ) -> None:
        self.file = file
        self.header = header
        self._on_cut = on_cut
        self.geometry = header.geometry
        self.decoder = Decoder(self.geometry, header.version, header.has_data_file)
        l1, offset = self._stored_l1(), header.l1_table_offset
        self.tables = L2Tables(file, self.decoder, l1, offset, cache, on_cut=on_cut)
        self.refcounts = Refcounts(file, header, self._stored_refcount_table())
        self.allocator = Allocator(file, header, self.refcounts)

    def _stored_l1(self) -> bigendian.Words:
        return bigendian.read(self.file, self.header.l1_table_offset, self.header.l1_size)

    def _stored_refcount_table(self) -> bigendian.Words:
        header = self.header
        length = header.refcount_table_clusters << header.cluster_bits
        content = self.file.read_metadata(header.refcount_table_offset, length)
        return bigendian.from_bytes(content)

    def forget(self) -> None:
        """Drop what is in memory of L1 table and refcounts, 40 MiB at most."""
        self.tables.show(bigendian.zeroes(0), 0)
        self.refcounts.reload(bigendian.zeroes(0))
        self.allocator.reset()

    def reload(self) -> None:
        """Read anew what is in memory of L1 table and refcounts: they were changed on disk."""
        self.forget()
        self.reload_l1()
        self.refcounts.reload(self._stored_refcount_table())

    def reload_l1(self) -> None:
        """Read the L1 table anew, and forget all L2 tables: they were changed on disk."""
        self.tables.show(self._stored_l1(), self.header.l1_table_offset, self._on_cut)

    def flush(self) -> None:
        """fdatasync of the image file; raises OSError."""
        if res := self.file.flush_blocking():
            raise OSError(-res, "flush failed")
