"""Grain tables and directories in memory, each perhaps with a redundant copy in the file."""

from __future__ import annotations

from array import array
from typing import ClassVar

from tap_vmdk.sparse.entries import CODING
from tapcore.clusters import Table, Write


class GrainTable(Table):
    """A grain table: where each grain lies (a sector of the file), `HOLE` or `ZERO`.

    Args:
        index: which one it is.
        offset: where it lies in the file, bytes.
        entries: its numbers.
        sound: all of them can be true, and none points at metadata; else nothing of it is changed.

    Attributes:
        copy: where its redundant copy lies, bytes; 0: there is none, or nothing is changed.
    """

    __slots__ = ("copy",)

    block_shift: ClassVar[int] = 7

    def __init__(self, index: int, offset: int, entries: array[int], *, sound: bool = True) -> None:
        super().__init__(index, offset, entries, CODING)
        self.sound = sound
        self.copy = 0

    def content(self) -> Write:
        """Of a new one: the copy lies behind it."""
        offset, content = super().content()
        if self.copy:
            content = content.ljust(self.copy - offset, b"\0") + content
        return offset, content

    def changes(self) -> list[Write]:
        """In both places."""
        writes = super().changes()
        distance = self.copy - self.offset
        return writes + [(at + distance, new) for at, new in writes if self.copy]


class Directory(Table):
    """The grain directory: where each table lies (a sector of the file), 0 for none.

    Args:
        places: of it and, where there is one, of the redundant one, bytes.
        entries: its numbers.
        spare: the numbers of the redundant one.
    """

    __slots__ = ("_spare",)

    def __init__(
        self, places: tuple[int, ...], entries: array[int], spare: array[int] | None
    ) -> None:
        super().__init__(-1, places[0], entries, CODING)
        self._spare = None if spare is None else Table(-1, places[1], spare, CODING)

    def name(self, index: int, table: int, copy: int) -> None:
        """Let it name a table, and the redundant one its copy (sectors)."""
        self.set(index, [table])
        if self._spare is not None:
            self._spare.entries[index] = copy

    def changes(self) -> list[Write]:
        """In both places."""
        writes = super().changes()
        if self._spare is not None:
            self._spare.dirty = self.dirty
            writes += self._spare.changes()
        return writes
