"""Zeroes written as content, for a driver that has no quicker way: a few at a time.

A driver that blocks would hold the loop for seconds with a GiB of them, and one that does not would
have its queue full of them, before anybody else's request.
"""

from __future__ import annotations

from typing import Final

from tapcore.buffers import ZEROES
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.dispatch import MAX_SEGMENT_SECTORS, Dispatcher
from tapcore.engine.requests import WRITE, Segment

AT_ONCE: Final = 4
"""Segments (of 1 MiB) in one turn of the loop."""

UNDER_WAY: Final = 8
"""Of them that the driver has not answered yet."""


class ZeroFill:
    """The zeroes of one request.

    Args:
        dispatcher: of the disk.
        seg: whose sectors they are; it counts all of them as forwarded.
        sector: the first of them.
        nb_sectors: how many.
    """

    __slots__ = ("_dispatcher", "_end", "_sector", "_seg", "_under_way")

    def __init__(self, dispatcher: Dispatcher, seg: Segment, sector: int, nb_sectors: int) -> None:
        self._dispatcher = dispatcher
        self._seg = seg
        self._sector = sector
        self._end = sector + nb_sectors
        self._under_way: list[Segment] = []

    def begin(self) -> None:
        """Write the first ones; the others have their turn later."""
        if not self.go_on():
            self._dispatcher.fills.append(self)

    @property
    def waits(self) -> bool:
        """Whether the driver has to answer some of them first."""
        self._under_way = [seg for seg in self._under_way if seg.pending]
        return len(self._under_way) >= UNDER_WAY

    def go_on(self) -> bool:
        """Write the next ones; returns whether these were the last."""
        issued = 0
        while self._sector < self._end and issued < AT_ONCE and not self.waits:
            issued += 1
            count = min(MAX_SEGMENT_SECTORS, self._end - self._sector)
            content = ZEROES[: count << SECTOR_SHIFT]
            seg = Segment(WRITE, self._sector, count, content, self._seg, self._seg.layer)
            self._sector += count
            self._under_way.append(seg)
            self._dispatcher.issue(seg)
        return self._sector == self._end
