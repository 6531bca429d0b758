"""Writes that must not run beside each other: a read-modify-write, and all that touches its range.

Ordinary writes run freely. A request that reads before it writes (an unaligned write, a copy on
read) holds its range alone: it waits for writes under way there, and later ones wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from tapcore.engine.requests import Segment


class Hold(NamedTuple):
    """A range of sectors held by one request: [start, end)."""

    start: int
    end: int


class _Waiting(NamedTuple):
    start: int
    end: int
    run: Callable[[], None]


class WritingGroup(Protocol):
    """Writes that are under way together."""

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """That they write, in sectors, [start, end)."""


class WriteOrder:
    """Who holds what, who writes where, and who waits.

    Attributes:
        groups: writes under way past the drivers.
        writing: ordinary writes under way that did not finish at once.
        strict: something is held or waits, so every write has to ask.
    """

    __slots__ = ("_holds", "_waiting", "groups", "strict", "writing")

    def __init__(self) -> None:
        self.groups: set[WritingGroup] = set()
        self.writing: set[Segment] = set()
        self._holds: list[Hold] = []
        self._waiting: deque[_Waiting] = deque()
        self.strict = False

    def must_wait(self, start: int, end: int) -> bool:
        """Whether an ordinary write of [start, end) overlaps a hold, or one that waits."""
        return any(start < h.end and h.start < end for h in self._holds) or any(
            start < w.end and w.start < end for w in self._waiting
        )

    def wait(self, start: int, end: int, run: Callable[[], None]) -> None:
        """Call `run` when [start, end) may be written."""
        self._waiting.append(_Waiting(start, end, run))
        self.strict = True

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def can_hold(self, start: int, end: int) -> bool:
        """Whether [start, end) can be held now."""
        if any(start < r.sector + r.nb_sectors and r.sector < end for r in self.writing):
            return False
        if any(start < stop and first < end for g in self.groups for first, stop in g.ranges):
            return False
        return not self.must_wait(start, end)

    def hold(self, start: int, end: int) -> Hold:
        """Take the range; give it back with `release`."""
        hold = Hold(start, end)
        self._holds.append(hold)
        self.strict = True
        return hold

    def release(self, hold: Hold) -> None:
        """Give a range back and let those run that waited for it."""
        self._holds.remove(hold)
        self.wake()

    def wrote(self, write: Segment) -> None:
        """An ordinary write has finished."""
        self.writing.discard(write)
        if self._waiting:
            self.wake()

    def group_wrote(self, group: WritingGroup) -> None:
        """All writes of a group have finished."""
        self.groups.discard(group)
        if self._waiting:
            self.wake()

    def wake(self) -> None:
        """Try those that wait, in their order; each waits again where it still has to."""
        waiting, self._waiting = self._waiting, deque()
        self.strict = bool(self._holds)
        for entry in waiting:
            entry.run()
