"""Tables kept in memory, up to a bound: a hit costs one dict lookup.

What was used lately lies in `young`, and a hit there does nothing else. When the bound is reached,
all that is young becomes old, and the young begin anew. Then each table that comes drives out one
that is still old, the longest there first; a hit on an old one makes it young again. Measured
against a strict order of use (OrderedDict and move_to_end): a hit costs less than half, and as few
lookups miss. Two generations of which one is dropped as a whole miss three times as often where
the tables in use are a few more than fit.

Tables that have changes, or that somebody needs, stay; who changes tables asks `full` first.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeAlias, TypeVar

import attrs

from tapcore.clusters.tables import Table, Write
from tapcore.errors import ImageFormatError
from tapcore.files import ImageFile

T = TypeVar("T", bound=Table)

Read: TypeAlias = Callable[[int, int], bytes | None]
"""A way to read the file (offset, length; bytes): None where that would wait for the disk."""

Loaded: TypeAlias = Callable[[Exception | None], int]
"""Goes on when a table is there, or cannot be read; returns how many requests that finished."""

DEFAULT_BYTES: Final = 32 << 20
_OVERHEAD: Final = 200
"""Bytes that Python needs for a table, besides its entries."""


def _never(index: int) -> bool:
    return False


class TableCache(Generic[T]):
    """The tables of one image, by index.

    Args:
        file: that holds them.
        read: reads the table of an index by one of the file's ways; None where that would wait.
            A thread may call it: it changes nothing. Raises ImageFormatError.
        table_bytes: of a table in memory.
        budget: bytes to keep; None: 32 MiB.
        directory: the table that names the others, always in memory, where there is one.

    Attributes:
        young: the tables used lately: what a short way looks into.
        directory: as given.
        dirty: tables with changes.
        most: tables that are kept.
        in_use: whether a request is about to change the table of an index.
    """

    def __init__(
        self,
        file: ImageFile,
        read: Callable[[int, Read], T | None],
        table_bytes: int,
        budget: int | None = None,
        directory: Table | None = None,
    ) -> None:
        self._file = file
        self._read = read
        self.directory = directory
        budget = DEFAULT_BYTES if budget is None else budget
        self.most = max(budget // (table_bytes + _OVERHEAD), 2)
        self.young: dict[int, T] = {}
        self._old: OrderedDict[int, T] = OrderedDict()
        self.dirty: set[T] = set()
        self._taken: set[int] = set()  # are being written back
        self.in_use: Callable[[int], bool] = _never
        self._loading: dict[int, list[Loaded]] = {}
        self._overtaken: set[int] = (
            set()
        )  # of these: what a thread reads may be older than a change

    # ---- finding ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def __contains__(self, index: int) -> bool:
        """Whether a table is in memory, perhaps with changes."""
        return index in self.young or index in self._old

    def get(self, index: int) -> T | None:
        """A table, if it is in memory."""
        table = self.young.get(index)
        if table is None:
            table = self._old.pop(index, None)
            if table is not None:
                self.young[index] = table
        return table

    def now(self, index: int) -> T | None:
        """A table that there is, if that takes no waiting for the disk.

        Raises:
            ImageFormatError: it cannot be where the image says.
        """
        table = self.get(index)
        if table is None:
            table = self._read(index, self._file.metadata_now)
            if table is not None:
                self.enter(table)
        return table

    def wait(self, index: int) -> T:
        """The same, waiting for the disk.

        Raises:
            ImageFormatError: it cannot be where the image says.
            OSError: as the system says.
        """
        table = self.young.get(index) or self.get(index)
        if table is None:
            table = self._read_waiting(index)
            self.enter(table)
        return table

    def _read_waiting(self, index: int) -> T:
        table = self._read(index, self._file.read_metadata)
        assert table is not None  # this way of reading waits
        return table

    def load(self, index: int, then: Loaded) -> None:
        """Read a table in a thread; `then` is called when a look into the cache is worth it."""
        waiting = self._loading.setdefault(index, [])
        waiting.append(then)
        if len(waiting) > 1:
            return
        found: list[T | ImageFormatError] = []

        def work() -> int:
            try:
                found.append(self._read_waiting(index))
            except ImageFormatError as exc:
                found.append(exc)
            return 0

        def loaded(res: int) -> int:
            failed = self._loaded(index, found[0] if found else OSError(-res, os.strerror(-res)))
            return sum(go_on(failed) for go_on in self._loading.pop(index))

        self._file.queue_work(work, loaded)

    def _loaded(self, index: int, found: T | Exception) -> Exception | None:
        overtaken = index in self._overtaken
        self._overtaken.discard(index)
        if isinstance(found, Exception):
            return None if index in self else found
        if not overtaken and index not in self:
            self._keep(found)
        return None

    def enter(self, table: T) -> None:
        """A table that was read, or made."""
        if table.index in self._loading:
            self._overtaken.add(table.index)
        self._old.pop(table.index, None)
        self._keep(table)

    def _keep(self, table: T) -> None:
        if len(self) >= self.most:
            self._make_room()
        self.young[table.index] = table

    def _make_room(self) -> None:
        if not self._old:  # what is used again before the next one comes gets young again
            self._old.update(self.young)
            self.young.clear()  # the same dict: short ways hold it
            if len(self) == self.most:
                return
        while self._old and len(self) >= self.most:
            index, table = self._old.popitem(last=False)
            if self._stays(index, table):
                self.young[index] = table  # looked at again when it is old once more

    def _stays(self, index: int, table: T) -> bool:
        changed = table.dirty or table.fresh or index in self._taken
        return bool(changed) or self.in_use(index)

    def unchanged_until(self, index: int, stop: int) -> int:
        """The first table from one on that says what the disk does not say yet; else `stop`."""
        changed = self._taken.union(table.index for table in self.dirty)
        return min((number for number in changed if index <= number < stop), default=stop)

    def forget(self) -> None:
        """Drop all: they were changed on disk, or the image is closed."""
        assert not self._loading
        self.dirty.clear()
        self.young.clear()
        self._old.clear()
        if self.directory is not None:
            self.directory.dirty.clear()

    # ---- changing ---------------------------------------------------------------------------

    @property
    def overfull(self) -> bool:
        """So many tables have changes that they should be written back."""
        return len(self.dirty) > self.most // 2

    @property
    def full(self) -> bool:
        """So many have that no more should be changed before that is done."""
        return len(self.dirty) >= self.most

    def set(self, table: T, first: int, numbers: Iterable[int]) -> None:
        """Change entries of a table from one on."""
        table.set(first, numbers)
        self.dirty.add(table)

    def set_one(self, table: T, at: int, number: int) -> None:
        """Change one entry of a table."""
        table.entries[at] = number
        table.dirty.add(at >> table.block_shift)
        self.dirty.add(table)

    def add(self, table: T) -> None:
        """A new table, at a place that was allocated for it; the directory is to name it."""
        table.fresh = True
        self.enter(table)
        self.dirty.add(table)

    def take(self) -> TakenTables[T]:
        """All that has changed, for a write-back; from now on it counts as unchanged."""
        taken = TakenTables(self)
        for table in self.dirty:
            if table.fresh:
                taken.fresh.append(table.content())
            else:
                taken.changed += table.changes()
            taken.tables.append((table, table.dirty, table.fresh))
            table.dirty, table.fresh = set(), False
            self._taken.add(table.index)
        self.dirty.clear()
        if self.directory is not None:
            taken.changed += self.directory.changes()
            taken.directory, self.directory.dirty = self.directory.dirty, set()
        return taken


@attrs.define
class TakenTables(Generic[T]):
    """The tables in a write-back's picture.

    Attributes:
        fresh: writes of new tables, which nothing on disk may point to before they are there.
        changed: writes of blocks that have changed, of tables and of the directory.
        tables: each with the blocks that were dirty, and whether it was fresh.
        directory: blocks of the directory that were dirty.
    """

    _cache: TableCache[T]
    fresh: list[Write] = attrs.field(factory=list)
    changed: list[Write] = attrs.field(factory=list)
    tables: list[tuple[T, set[int], bool]] = attrs.field(factory=list)
    directory: set[int] = attrs.field(factory=set)

    def conclude(self, *, ok: bool, published: bool) -> None:
        """The write-back is over.

        Args:
            ok: all is on disk; else all of it is to be written again.
            published: of what failed, something may be on disk that points to the new tables: from
                now on these are changed as all others, after what they point to.
        """
        cache = self._cache
        for table, dirty, fresh in self.tables:
            cache._taken.discard(table.index)
            if not ok:
                table.dirty |= dirty
                table.fresh = fresh and not published
                cache.dirty.add(table)
        if not ok and cache.directory is not None:
            cache.directory.dirty |= self.directory
