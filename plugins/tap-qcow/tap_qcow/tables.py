"""The L1 table, and as many L2 tables as there is memory for: the least recently used ones go.

A table that has changes, or that a request is about to change, stays.
"""

from __future__ import annotations

import errno
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from tap_qcow.entries import Entries, empty_entries, unpack_entries
from tap_qcow.layout import Geometry
from tapcore import ImageFile, ImageFormatError

DEFAULT_CACHE: Final = 32 << 20
"""Bytes of L2 tables: 16 GiB of disk with the tables that QEMU makes."""

BLOCK_SHIFT: Final = 6
"""Changes are written back in blocks of 64 entries, the 512 bytes of a sector."""


def l1_of(content: bytes, file_size: int) -> tuple[Entries, bool]:
    """The L1 table, and whether it is little-endian: what its entries can be decides.

    blktap wrote it so until 2008, and later marked neither kind reliably.

    Args:
        content: of the table.
        file_size: bytes.
    """
    l1 = unpack_entries(content)
    if max(l1, default=0) < file_size:
        return l1, False
    swapped = unpack_entries(content, little=True)
    if max(swapped) < file_size and not any(entry & 511 for entry in swapped):
        return swapped, True
    return l1, False


class Table:
    """An L2 table in memory.

    Attributes:
        index: of its L1 entry.
        offset: where it lies in the file, bytes.
        entries: as they are to be.
        dirty: numbers of the blocks that have changed.
        fresh: the L1 entry in the file does not point to it yet; it is written whole.
        pins: what needs it to stay in memory: requests, a write-back.
    """

    __slots__ = ("dirty", "entries", "fresh", "index", "offset", "pins")

    def __init__(self, index: int, offset: int, entries: Entries, *, fresh: bool = False) -> None:
        self.index = index
        self.offset = offset
        self.entries = entries
        self.dirty: set[int] = set()
        self.fresh = fresh
        self.pins = 0

    @property
    def stays(self) -> bool:
        """Whether it must not be forgotten."""
        return bool(self.pins or self.dirty or self.fresh)


class Tables:
    """All that maps the disk.

    Args:
        file: the image file.
        geometry: of the image.
        l1: the L1 table's entries.
        check: raises ImageFormatError for a place (offset, length) where no table can lie.
        cache: bytes of L2 tables to keep; None: `DEFAULT_CACHE`.

    Attributes:
        l1: entries, as they are to be.
        l1_dirty: numbers of the blocks of the L1 table that have changed.
        dirty: L2 tables with changes.
        most: tables that are kept.
    """

    def __init__(
        self,
        file: ImageFile,
        geometry: Geometry,
        l1: Entries,
        check: Callable[[int, int], None],
        cache: int | None = None,
    ) -> None:
        self._file = file
        self._bytes = geometry.table_bytes
        self._check = check
        self.l1 = l1
        self.l1_dirty: set[int] = set()
        self.dirty: set[Table] = set()
        self.most = max((DEFAULT_CACHE if cache is None else cache) // self._bytes, 2)
        self._kept: OrderedDict[int, Table] = OrderedDict()
        self._loading: dict[int, list[Callable[[int], int]]] = {}
        self._outdated: set[int] = set()  # of these: what a thread reads may be older than a change

    # ---- finding ----------------------------------------------------------------------------

    def get(self, index: int) -> Table | None:
        """The table of an L1 entry if it is in memory."""
        table = self._kept.get(index)
        if table is not None:
            self._kept.move_to_end(index)
        return table

    def has(self, index: int) -> bool:
        """Whether the table of an L1 entry is in memory, perhaps with changes."""
        return index in self._kept

    def now(self, index: int) -> Table | None:
        """The table of an L1 entry that is not 0, if that takes no waiting for the disk.

        Raises:
            ImageFormatError: the entry is not possible.
        """
        table = self.get(index)
        if table is not None:
            return table
        content = self._file.metadata_now(self._offset(index), self._bytes)
        return None if content is None else self._enter(index, content)

    def wait(self, index: int) -> Table:
        """The same, waiting for the disk.

        Raises:
            ImageFormatError: the entry is not possible.
            OSError: as the system says.
        """
        table = self.get(index)
        if table is not None:
            return table
        return self._enter(index, self._file.read_metadata(self._offset(index), self._bytes))

    def load(self, index: int, then: Callable[[int], int]) -> None:
        """Read a table in a thread, and call `then(0 or -errno)` when it is in memory.

        Args:
            index: of an L1 entry that `now` could not serve.
            then: returns how many requests it finished.
        """
        waiting = self._loading.setdefault(index, [])
        waiting.append(then)
        if len(waiting) > 1:
            return
        offset = self._offset(index)
        found: list[bytes] = []

        def work() -> int:
            found.append(self._file.read_metadata(offset, self._bytes))
            return 0

        def loaded(res: int) -> int:
            resume = self._loading.pop(index)
            if index in self._outdated:
                self._outdated.remove(index)
            elif res == 0:
                self._enter(index, found[0])
            return sum(call(res) for call in resume)

        self._file.queue_work(work, loaded)

    def _offset(self, index: int) -> int:
        offset = self.l1[index]
        self._check(offset, self._bytes)
        end = offset + self._bytes
        if end > self._file.size and end > self._file.look_again():
            # zeroes for what it lacks would say that nothing is there
            text = f"its L2 table, at offset {offset:#x}, is cut by the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)
        return offset

    def _enter(self, index: int, content: bytes) -> Table:
        table = Table(index, self.l1[index], unpack_entries(content))
        self._keep(table)
        return table

    def _keep(self, table: Table) -> None:
        if table.index in self._loading:
            self._outdated.add(table.index)
        kept = self._kept
        kept[table.index] = table
        for _ in range(len(kept) - self.most):
            index, oldest = next(iter(kept.items()))
            if oldest.stays:
                kept.move_to_end(index)  # looked at again when it is the oldest once more
                return
            del kept[index]

    # ---- changing ---------------------------------------------------------------------------

    @property
    def overfull(self) -> bool:
        """So many tables have changes that they should be written back."""
        return len(self.dirty) > self.most // 2

    @property
    def full(self) -> bool:
        """So many have that no more should be changed before that is done."""
        return len(self.dirty) >= self.most

    def set(self, table: Table, first: int, entries: Iterable[int]) -> None:
        """Change L2 entries.

        Args:
            table: in memory, and pinned ever since it was looked up.
            first: number in the table of the first entry.
            entries: new values.
        """
        new = array("Q", entries)
        end = first + len(new)
        table.entries[first:end] = new
        table.dirty.update(range(first >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1))
        self.dirty.add(table)

    def set_l1(self, index: int, offset: int) -> None:
        """Change an L1 entry."""
        self.l1[index] = offset
        self.l1_dirty.add(index >> BLOCK_SHIFT)

    def add(self, index: int, offset: int) -> Table:
        """An empty table for an L1 entry that has none, at a place (bytes) that was allocated."""
        table = Table(index, offset, empty_entries(self._bytes // 8), fresh=True)
        self._keep(table)
        self.dirty.add(table)
        self.set_l1(index, offset)
        return table

    def forget(self, l1: Entries) -> None:
        """Start again with another L1 table, as it is in the file; nothing may be under way."""
        assert not self._loading
        self.l1 = l1
        self.l1_dirty.clear()
        self.dirty.clear()
        self._kept.clear()
