"""Who uses which space of a file: one bit for each unit of it, in pages made when needed.

So memory follows what lies in the file, and neither its length nor what its header claims.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_SHIFT: Final = 10
_PAGE: Final = 1 << _SHIFT
_ALL: Final = (1 << _PAGE) - 1


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
        self._pages: dict[int, int] = {}  # by number; a bit is set for a unit that is used

    def use(self, sector: int, sectors: int) -> None:
        """Note that something lies there, be it whole units or not.

        Args:
            sector: its first one.
            sectors: its length.
        """
        first, end = self._units(sector, sectors)
        self.end = max(self.end, end)
        for page, mask in _pieces(first, end):
            self._pages[page] = _ALL if mask == _ALL else self._pages.get(page, 0) | mask

    def used(self, sector: int, sectors: int) -> bool:
        """Whether something lies there already.

        Args:
            sector: where a grain begins.
            sectors: its length.

        Raises:
            MisalignedError: that is not at a unit.
        """
        if sector % self.unit:
            raise MisalignedError
        pages = self._pages
        return any(
            pages.get(page, 0) & mask for page, mask in _pieces(*self._units(sector, sectors))
        )

    def _units(self, sector: int, sectors: int) -> tuple[int, int]:
        return sector // self.unit, -(-(sector + sectors) // self.unit)

    def unused(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The runs of units between two that nothing uses, as (first, end)."""
        start = first  # of the run that goes on
        for page in sorted(self._pages):
            base, taken = page << _SHIFT, self._pages[page]
            if base >= end:
                break
            while taken:
                low = (taken & -taken).bit_length() - 1
                after = (~(taken >> low) & -~(taken >> low)).bit_length() - 1 + low
                if start < min(base + low, end):
                    yield start, min(base + low, end)
                start = max(start, base + after)
                taken = taken >> after << after
        if start < end:
            yield start, end


def _pieces(first: int, end: int) -> Iterator[tuple[int, int]]:
    """The pages of a run of units, each with the bits that stand for them."""
    while first < end:
        at = first & (_PAGE - 1)
        count = min(_PAGE - at, end - first)
        yield first >> _SHIFT, ((1 << count) - 1) << at
        first += count
