"""The L1 table, and the L2 tables in memory: a bounded cache that costs a hit one dict lookup.

Tables are kept in two generations. A lookup that hits the young one does nothing else; when that is
full it becomes the old one, and what was in the old one and not used since is forgotten. So the
least recently used go, without any work for a hit. Tables with changes that are not on disk stay.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import l1_entry, offset_of
from tapcore import ImageFile, ImageFormatError, Then

DEFAULT_CACHE: Final = 32 << 20
"""Bytes of L2 tables, as QEMU's `l2-cache-size`: 256 GiB of disk at 64 KiB clusters."""

BLOCK_SHIFT: Final = 9
"""Changes are written back in blocks of 512 words (4 KiB)."""

L1_BLOCK_SHIFT: Final = 6
"""Changed L1 entries are written back by the sector."""


class Table:
    """One L2 table in memory.

    Attributes:
        index: of its L1 entry.
        offset: where it lies in the image file, bytes.
        entries: its words; two for each cluster where L2 entries are extended.
        dirty: numbers of the blocks that have changed.
        fresh: no L1 entry on disk points to it yet: it is written whole.
        pinned: being written back: it must not be read from disk yet.
        checked: its entries were checked for a first write through it.
    """

    __slots__ = ("checked", "dirty", "entries", "fresh", "index", "offset", "pinned")

    def __init__(self, index: int, offset: int, entries: Words, *, fresh: bool = False) -> None:
        self.index = index
        self.offset = offset
        self.entries = entries
        self.dirty: set[int] = set()
        self.fresh = fresh
        self.pinned = False
        self.checked = fresh


class L2Tables:
    """All tables that map the disk.

    Args:
        file: the image file.
        decoder: of the image's entries.
        l1: the L1 table's entries.
        l1_offset: where it lies, bytes.
        cache: bytes of L2 tables to keep.
        on_cut: told of a table that is cut by the end of the file, of which the rest then maps
            nothing, as for QEMU; None: such a table is an error.

    Attributes:
        file: the image file.
        decoder: see there.
        young: the tables used lately, by L1 index: what a fast path looks into.
        l1: entries, as they are to be.
        l1_offset: bytes.
        l1_dirty: sectors of the L1 table that have changed.
        dirty: tables with changes.
    """

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
        self.file = file
        self.decoder = decoder
        self._geometry = geometry = decoder.geometry
        self._on_cut = on_cut
        self.l1 = l1
        self.l1_offset = l1_offset
        self.l1_dirty: set[int] = set()
        self.dirty: set[Table] = set()
        budget = DEFAULT_CACHE if cache is None else cache
        self.most = max(budget >> geometry.cluster_bits, 2)
        self._young_most = max(self.most // 2, 1)
        self.young: dict[int, Table] = {}
        self._old: dict[int, Table] = {}
        self._loading: dict[int, list[Then]] = {}
        self._outdated: set[int] = set()  # of these: what a thread reads may be older than a change

    # ---- finding ----------------------------------------------------------------------------

    def offset_of(self, index: int) -> int:
        """Where the L2 table of an L1 entry lies (bytes); 0: there is none.

        Raises:
            ImageFormatError: the entry is not possible.
        """
        table = self.young.get(index) or self._old.get(index)
        if table is not None:  # perhaps a new one, for which the file has not grown yet
            return table.offset
        if index >= len(self.l1):
            return 0
        entry = self.l1[index]
        offset = offset_of(entry)
        if not offset:
            return 0
        size = self._geometry.cluster_size
        if offset & (size - 1) or offset + size > self.file.size:
            self._check_place(entry, offset)
        return offset

    def _check_place(self, entry: int, offset: int) -> None:
        """Of a table that is cut by the end of the file, zeroes would say that nothing is there."""
        size = self._geometry.cluster_size
        if offset & (size - 1):
            raise ImageFormatError(f"has an impossible L1 entry ({entry:#x})", errno=errno.EIO)
        file_size = self.file.look_again()
        if offset >= file_size:
            text = f"its L2 table, at offset {offset:#x}, lies past the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)
        if offset + size > file_size:
            text = f"its L2 table, at offset {offset:#x}, is cut by the end of the file"
            if self._on_cut is None:
                raise ImageFormatError(text, errno=errno.EIO)
            self._on_cut(text)

    def has(self, index: int) -> bool:
        """Whether the table of an L1 entry is in memory, perhaps with changes."""
        return index in self.young or index in self._old

    def cached(self, index: int) -> Table | None:
        """The table of an L1 entry if it is in memory."""
        table = self.young.get(index)
        if table is None:
            table = self._old.get(index)
            if table is not None:
                self._keep(table)
        return table

    def now(self, index: int) -> Table | None:
        """The table of an L1 entry that has one, if that takes no waiting for the disk."""
        table = self.cached(index)
        if table is not None:
            return table
        offset = self.offset_of(index)
        content = self.file.metadata_now(offset, self._geometry.cluster_size)
        return None if content is None else self._enter(index, offset, content)

    def wait(self, index: int) -> Table:
        """The same, waiting for the disk.

        Raises:
            OSError: as the system says.
            ImageFormatError: the L1 entry is not possible.
        """
        table = self.cached(index)
        if table is not None:
            return table
        offset = self.offset_of(index)
        content = self.file.read_metadata(offset, self._geometry.cluster_size)
        return self._enter(index, offset, content)

    def load(self, index: int, then: Then) -> None:
        """Read a table in a thread, and call `then(0 or -errno)` when it is in memory.

        Args:
            index: of an L1 entry that has a table, not in memory.
            then: returns how many requests it completed.

        Raises:
            ImageFormatError: the L1 entry is not possible.
        """
        if index in self._loading:
            self._loading[index].append(then)
            return
        offset = self.offset_of(index)
        self._loading[index] = [then]
        found: list[bytes] = []

        def work() -> int:
            found.append(self.file.read_metadata(offset, self._geometry.cluster_size))
            return 0

        def loaded(res: int) -> int:
            resume = self._loading.pop(index)
            if index in self._outdated:
                self._outdated.remove(index)
            elif res == 0:
                self._enter(index, offset, found[0])
            return sum(call(res) for call in resume)

        self.file.queue_work(work, loaded)

    def _enter(self, index: int, offset: int, content: bytes) -> Table:
        table = Table(index, offset, bigendian.from_bytes(content))
        self._keep(table)
        if index in self._loading:
            self._outdated.add(index)
        return table

    def _keep(self, table: Table) -> None:
        if len(self.young) >= self._young_most:
            self._turn_over()
        self.young[table.index] = table

    def _turn_over(self) -> None:
        """The young become the old; of those that were old, the changed ones stay."""
        staying = {i: t for i, t in self._old.items() if t.dirty or t.fresh or t.pinned}
        self._old = staying | self.young
        self.young.clear()  # the same dict: the fast path holds it

    @property
    def overfull(self) -> bool:
        """So many tables have changes that they must be written back before more are changed."""
        return len(self.dirty) > self.most

    # ---- changing ---------------------------------------------------------------------------

    def set(self, table: Table, number: int, entry: int, bitmap: int = 0) -> None:
        """Change the L2 entry of a cluster.

        Args:
            table: that has it.
            number: of the cluster in the table.
            entry: the new one.
            bitmap: of its subclusters, where entries are extended.
        """
        at = number * self._geometry.words
        table.entries[at] = entry
        if self._geometry.extended:
            table.entries[at + 1] = bitmap
        table.dirty.add(at >> BLOCK_SHIFT)
        self.dirty.add(table)

    def set_l1(self, index: int, entry: int) -> None:
        """Change an L1 entry."""
        self.l1[index] = entry
        self.l1_dirty.add(index >> L1_BLOCK_SHIFT)

    def add(self, index: int, offset: int, entries: Words | None = None) -> Table:
        """A new table at a cluster that was allocated for it; its L1 entry points there.

        Args:
            index: of its L1 entry.
            offset: of the cluster, bytes.
            entries: its content; None: nothing is allocated.
        """
        content = bigendian.zeroes(self._geometry.table_words) if entries is None else entries
        self._old.pop(index, None)
        table = Table(index, offset, content, fresh=True)
        self._keep(table)
        if index in self._loading:
            self._outdated.add(index)
        self.dirty.add(table)
        self.set_l1(index, l1_entry(offset))
        return table

    def release(self) -> None:
        """The image is closed: its memory must not wait for the garbage collector."""
        self.dirty.clear()
        self.forget()
        self.l1 = bigendian.zeroes(0)

    def show(self, l1: Words, l1_offset: int, on_cut: Callable[[str], None] | None = None) -> None:
        """Go by another L1 table from now on; no L2 table is dirty.

        Args:
            l1: its entries.
            l1_offset: where it lies, bytes.
            on_cut: told of tables that are cut by the end of the file; None: that is an error.
        """
        self.forget()
        self.l1 = l1
        self.l1_offset = l1_offset
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

    def forget(self) -> None:
        """Drop all tables: they, or the L1 table, were changed on disk. None may be dirty."""
        assert not self.dirty
        self.young.clear()
        self._old.clear()
