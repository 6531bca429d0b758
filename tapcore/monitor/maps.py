"""The maps of disks, as somebody else draws them: asked for while they are looked at, and kept."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final, TypeAlias

import attrs

from tapcore.process.timer import Put

KEPT_SECONDS: Final = 10.0
"""A map is not made again before, nor before ten times as long as it took has passed."""

MOST_KEPT: Final = 64
"""Maps; the one that was there first goes first."""


@attrs.frozen
class Drawn:
    """What became of a wish for a map.

    Attributes:
        svg: a picture that can be put into a page as it is; empty: there is none.
        why: there is none; text, not escaped.
    """

    svg: str = ""
    why: str = ""


Tell: TypeAlias = Callable[[Drawn], None]

Draw: TypeAlias = Callable[[str, Tell, Put], None]
"""Begins to draw the map of a disk of that name; what becomes of it is told once, later or
now. The last argument is the timer of the pages."""


@attrs.define(eq=False)
class _Kept:
    """Of one disk: when the last wish was uttered, and what is known of it or of the one before."""

    started: float
    asked: float = 0.0
    told: float = 0.0
    waits: bool = False
    drawn: Drawn | None = None


class Maps:
    """The last map of each disk.

    Args:
        draw: where they come from.
        clock: seconds, monotonic.
    """

    def __init__(self, draw: Draw, clock: Callable[[], float] = monotonic) -> None:
        self._draw = draw
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._later: Put = lambda seconds, do: do()

    def live_in(self, later: Put) -> None:
        """Maps are drawn in a loop from now on."""
        self._later = later

    def of(self, name: str, started: float) -> tuple[Drawn | None, float]:
        """The last map of a disk; a new one is asked for where that is due.

        Args:
            name: of the disk.
            started: when it was opened; another one may have had the name before.

        Returns:
            What became of the last wish (None: nothing yet), and how many seconds old that is.
        """
        kept = self._kept.get(name)
        if kept is None or kept.started != started:
            kept = self._kept[name] = _Kept(started)
            while len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        if not kept.waits and self._is_due(kept):
            self._ask(name, kept)
        return kept.drawn, self._clock() - kept.told

    def _is_due(self, kept: _Kept) -> bool:
        if kept.drawn is None:
            return True
        age, took = self._clock() - kept.told, kept.told - kept.asked
        return age > max(KEPT_SECONDS, 10 * took)

    def _ask(self, name: str, kept: _Kept) -> None:
        kept.asked, kept.waits = self._clock(), True

        def tell(drawn: Drawn) -> None:
            kept.drawn, kept.told, kept.waits = drawn, self._clock(), False

        self._draw(name, tell, self._later)
