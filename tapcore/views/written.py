"""Which sectors of a disk a view has of its own."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Written:
    """A set of sectors, as the places where it begins and ends.

    They lie in one sorted list, begin and end in turn: what an odd number of places lies before is
    in the set. So a run of any length takes two numbers.
    """

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add the sectors [start, end), which are not none."""
        places = self._places
        first, stop = bisect_left(places, start), bisect_right(places, end)
        places[first:stop] = [start] * (1 - first % 2) + [end] * (1 - stop % 2)

    def cut(self, end: int) -> None:
        """Forget all from a sector on."""
        places = self._places
        first = bisect_left(places, end)
        places[first:] = [end] * (first % 2)

    def clear(self) -> None:
        """Forget all."""
        self._places.clear()

    def has(self, start: int, end: int) -> bool | None:
        """Whether all of [start, end) is in the set (True), none of it (False), or some (None)."""
        places = self._places
        at = bisect_right(places, start)
        if at == len(places) or places[at] >= end:
            return at % 2 == 1
        return None

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """[start, end) as runs that are in the set or are not: (start, end, is in it)."""
        places = self._places
        at = bisect_right(places, start)
        while start < end:
            stop = min(places[at], end) if at < len(places) else end
            yield start, stop, at % 2 == 1
            start, at = stop, at + 1

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._places) // 2
