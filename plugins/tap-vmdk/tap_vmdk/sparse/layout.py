"""What the tables of a sparse file are like: where they lie, and how large they are."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

Reserved = tuple[int, int]
"""Something that is no table: its first sector, and the first one past it."""


class Layout(NamedTuple):
    """What the header of a sparse file, of any kind, says of its tables.

    Attributes:
        capacity: of the file's disk, sectors.
        grain: sectors in a grain, a power of two.
        entries: in a table, a power of two.
        tables: how many cover the capacity.
        table_bytes: on disk.
        directory_bytes: on disk.
        directories: where the directories lie (bytes), the first one first.
        first_grain: no grain lies before this sector.
        reserved: where header and descriptor lie, as (first sector, first one past it).
        zeroes: an entry of 1 means zeroes; otherwise it is an error.
        whole: grains are stored whole, so that one must not reach past the end of the file.
        decode_directory: from a directory's bytes to the tables' sectors.
        decode_table: from a table's bytes to the grains' sectors.
    """

    capacity: int
    grain: int
    entries: int
    tables: int
    table_bytes: int
    directory_bytes: int
    directories: tuple[int, ...]
    first_grain: int
    reserved: tuple[Reserved, ...]
    zeroes: bool
    whole: bool
    decode_directory: Callable[[bytes], array[int]]
    decode_table: Callable[[bytes], array[int]]

    @property
    def table_sectors(self) -> int:
        """Sectors that a table takes."""
        return -(-self.table_bytes // 512)

    def directory_range(self, which: int) -> Reserved:
        """Where a directory lies, as `reserved`."""
        first = self.directories[which] // 512
        return first, first - (-self.directory_bytes // 512)
