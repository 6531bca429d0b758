"""The L1 table, and the L2 tables in memory.

Source: qcow2.rst, "Cluster mapping".
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import l1_entry, offset_of
from tapcore import ImageFile, ImageFormatError
from tapcore.clusters import Coding, Read, Table, TableCache

WORDS: Final = Coding("Q", "big")


class L2Table(Table):
    """One L2 table in memory; two words for each cluster where L2 entries are extended.

    Changes are written back in blocks of 512 words (4 KiB). It is sound once it was checked for a
    first write through it.
    """

    __slots__ = ()

    block_shift: ClassVar[int] = 9

    def __init__(self, index: int, offset: int, entries: Words, *, fresh: bool = False) -> None:
        super().__init__(index, offset, entries, WORDS, fresh=fresh)
        self.sound = fresh


class L2Tables(TableCache[L2Table]):
    """All tables that map the disk.

    Args:
        file: the image file.
        decoder: of the image's entries.
        l1: the L1 table's entries.
        l1_offset: where it lies, bytes.
        cache: bytes of L2 tables to keep; None: as many as the core does.
        on_cut: told of a table that is cut by the end of the file, of which the rest then maps
            nothing, as for QEMU; None: such a table is an error.
    """

    directory: Table

    def __init__(
        self,
        file: ImageFile,
        decoder: Decoder,
        l1: Words,
        l1_offset: int,
        cache: int | None = None,
        *,
        on_cut: Callable[[str], None] | None = None,
    ) -> None:
        self._size = size = decoder.geometry.cluster_size
        self._l2_words = decoder.geometry.table_words
        self._on_cut = on_cut
        super().__init__(file, self.read_table, size, cache, Table(-1, l1_offset, l1, WORDS))

    @property
    def l1(self) -> Words:
        """The L1 table's entries, as they are to be."""
        return self.directory.entries

    @property
    def l1_offset(self) -> int:
        """Where it lies, bytes."""
        return self.directory.offset

    # ---- finding ----------------------------------------------------------------------------

    def offset_of(self, index: int) -> int:
        """Where the L2 table of an L1 entry lies (bytes); 0: there is none.

        Raises:
            ImageFormatError: the entry is not possible.
        """
        l1 = self.directory.entries
        offset = offset_of(l1[index]) if index < len(l1) else 0
        outside = offset & (self._size - 1) or offset + self._size > self._file.size
        if offset and outside and index not in self:  # the file grows late for new ones
            self._check_place(l1[index], offset)
        return offset

    def _check_place(self, entry: int, offset: int) -> None:
        """Of a table that is cut by the end of the file, zeroes would say that nothing is there."""
        if offset & (self._size - 1):
            raise ImageFormatError(f"has an impossible L1 entry ({entry:#x})", errno=errno.EIO)
        file_size = self._file.look_again()
        if offset >= file_size:
            text = f"its L2 table, at offset {offset:#x}, lies past the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)
        if offset + self._size > file_size:
            text = f"its L2 table, at offset {offset:#x}, is cut by the end of the file"
            if self._on_cut is None:
                raise ImageFormatError(text, errno=errno.EIO)
            self._on_cut(text)

    def read_table(self, index: int, read: Read) -> L2Table | None:
        """An L2 table that there is, and of which `offset_of` was asked before."""
        offset = offset_of(self.directory.entries[index])
        content = read(offset, self._size)
        return None if content is None else L2Table(index, offset, bigendian.from_bytes(content))

    # ---- changing ---------------------------------------------------------------------------

    def new(self, index: int, offset: int, entries: Words | None = None) -> L2Table:
        """A new table at a cluster that was allocated for it; its L1 entry leads there.

        Args:
            index: of its L1 entry.
            offset: of the cluster, bytes.
            entries: its content; None: nothing is allocated.
        """
        content = bigendian.zeroes(self._l2_words) if entries is None else entries
        table = L2Table(index, offset, content, fresh=True)
        self.add(table)
        self.directory.set(index, [l1_entry(offset)])
        return table

    def move_l1(self, l1: Words, l1_offset: int) -> None:
        """The L1 table, perhaps longer now, was written to another place."""
        self.directory.entries, self.directory.offset = l1, l1_offset

    def show(self, l1: Words, l1_offset: int, on_cut: Callable[[str], None] | None = None) -> None:
        """Go by another L1 table from now on; no L2 table is dirty.

        Args:
            l1: its entries.
            l1_offset: where it lies, bytes.
            on_cut: told of tables that are cut by the end of the file; None: that is an error.
        """
        assert not self.dirty
        self.forget()
        self.move_l1(l1, l1_offset)
        self._on_cut = on_cut

    @contextmanager
    def showing(self, l1: Words, l1_offset: int) -> Iterator[None]:
        """Go by another L1 table (at an offset, bytes) for a while, and then by this one again.

        None of its own tables is dirty; of the other's, changes not written then are dropped.
        """
        before = self.l1, self.l1_offset, self._on_cut
        self.show(l1, l1_offset)
        try:
            yield
        finally:
            self.dirty.clear()
            self.show(*before)

    def release(self) -> None:
        """The image is closed: its memory must not wait for the garbage collector."""
        self.forget()
        self.directory.entries = bigendian.zeroes(0)
