"""Who uses which space of a file: one byte for each unit of it, in pages made when needed."""

from __future__ import annotations

from typing import Final

_PAGE: Final = 1 << 16
FREE: Final = 0
METADATA: Final = 1
GRAIN: Final = 2


class MisalignedError(Exception):
    """Something does not begin at a unit; a map of smaller units is needed."""


class SpaceMap:
    """The space of one file.

    Args:
        unit: sectors.

    Attributes:
        unit: as given.
        end: first unit past all that is used.
    """

    def __init__(self, unit: int) -> None:
        self.unit = unit
        self.end = 0
        self._pages: dict[int, bytearray] = {}

    def use(self, sector: int, sectors: int, what: int) -> bool:
        """Note that something lies there.

        Args:
            sector: its first one.
            sectors: its length.
            what: `METADATA` (whatever its place), or `GRAIN` (which must begin at a unit).

        Returns:
            False for a grain of which some space is used already; it is noted all the same.

        Raises:
            MisalignedError: a grain does not begin at a unit.
        """
        if what == GRAIN and sector % self.unit:
            raise MisalignedError
        first, end = sector // self.unit, -(-(sector + sectors) // self.unit)
        self.end = max(self.end, end)
        free = True
        while first < end:
            page, at = divmod(first, _PAGE)
            count = min(_PAGE - at, end - first)
            content = self._pages.get(page)
            if content is None:
                content = self._pages[page] = bytearray(_PAGE)
            if any(content[at : at + count]):
                free = False
            content[at : at + count] = bytes((what,)) * count
            first += count
        return free

    def unused(self, first: int, end: int) -> list[tuple[int, int]]:
        """The runs of units between two that nothing uses, as (first, end)."""
        found: list[tuple[int, int]] = []
        while first < end:
            page, at = divmod(first, _PAGE)
            stop = min(end, (page + 1) * _PAGE)
            content = self._pages.get(page)
            if content is None:
                _join(found, first, stop)
            else:
                self._unused_in(content, page * _PAGE, at, stop - page * _PAGE, found)
            first = stop
        return found

    @staticmethod
    def _unused_in(
        content: bytearray, base: int, at: int, stop: int, found: list[tuple[int, int]]
    ) -> None:
        while (at := content.find(FREE, at, stop)) >= 0:
            until = at
            while until < stop and not content[until]:
                until += 1
            _join(found, base + at, base + until)
            at = until


def _join(found: list[tuple[int, int]], first: int, end: int) -> None:
    if found and found[-1][1] == first:
        found[-1] = (found[-1][0], end)
    else:
        found.append((first, end))
