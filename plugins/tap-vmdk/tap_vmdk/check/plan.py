"""What a check would change of a sparse file."""

from __future__ import annotations

from array import array
from typing import Final

import attrs

from tap_vmdk.sparse.entries import LAST_SECTOR
from tap_vmdk.sparse.sizes import round_up

_LEAST_GROWTH: Final = 64 << 20
"""Bytes that every file may grow by; one that is longer, by as much as it has."""


@attrs.define
class RepairPlan:
    """What is to be changed.

    Attributes:
        start: sector behind the file's end where the new things begin; a multiple of a grain.
        end: first sector past the grains that got a place.
        moves: of each grain its old and its new place; the old one is -1 for a grain of zeroes.
        tables: what they are to be, by directory (0: the first) and number; None: it is to be none.
        missing: runs of empty tables that have no copy yet, as (number, count).
        rebuild: a directory cannot stay where it is, or is not there.
        too_long: the file would grow beyond all measure, so nothing is to be done.
    """

    start: int
    limit: int
    end: int = attrs.field(init=False)
    moves: list[tuple[int, int]] = attrs.field(factory=list)
    tables: dict[tuple[int, int], array[int] | None] = attrs.field(factory=dict)
    missing: list[tuple[int, int]] = attrs.field(factory=list)
    rebuild: bool = False
    too_long: bool = False

    def __attrs_post_init__(self) -> None:
        self.end = self.start

    @classmethod
    def behind(cls, size: int, grain: int, end: int) -> RepairPlan:
        """For a file.

        Args:
            size: of it, bytes.
            grain: sectors.
            end: first sector past all that is used.
        """
        start = round_up(max(end, -(-size // 512)), grain)
        return cls(start, min(start + (max(size, _LEAST_GROWTH) >> 9), LAST_SECTOR))

    def take(self, place: int, grain: int) -> int:
        """A new place for a grain; the old one where there is no more room.

        Args:
            place: where it is; -1 for one of zeroes.
            grain: sectors.
        """
        if self.too_long or self.end + grain > self.limit:
            self.too_long = True
            return max(place, 0)
        self.moves.append((place, self.end))
        self.end += grain
        return self.end - grain

    def set_table(self, which: int, index: int, table: array[int] | None) -> None:
        """Note what a table is to be.

        Args:
            which: 0 in the first directory, 1 in the redundant one.
            index: its number.
            table: its entries; None: the directory is to name none.
        """
        size = len(table) * 4 if table is not None else 4
        if len(self.tables) * size >> 9 > self.limit - self.start:
            self.too_long = True
        else:
            self.tables[which, index] = table

    def __bool__(self) -> bool:
        return bool(self.moves or self.tables or self.missing or self.rebuild)
