"""What drivers of a disk found that they cannot read, remembered and logged once."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tapcore.interface.loss import Loss

log = logging.getLogger(__name__)

_MOST: Final = 4096
"""Losses that are remembered: more than the reads can find that a tool has under way."""

_MOST_LINES: Final = 8
"""Lines about damage that are logged for one disk."""


class Losses:
    """Those of one disk, the last ones.

    Attributes:
        count: how many were noted ever.
    """

    __slots__ = ("_found", "_lines", "_zeroed", "count")

    def __init__(self) -> None:
        self.count = 0
        self._found: deque[Loss] = deque(maxlen=_MOST)
        self._zeroed: set[str] = set()
        self._lines: set[tuple[str, str]] = set()

    def note(self, loss: Loss) -> None:
        """Remember a loss."""
        self.count += 1
        self._found.append(loss)

    def among(self, sector: int, end: int, *, since: int = 0) -> list[Loss]:
        """Losses inside a range of sectors, in order.

        Args:
            sector: first sector.
            end: first sector past the range.
            since: `count` as it was; only what was noted after that counts.
        """
        new = min(self.count - since, len(self._found))
        latest = (self._found[-1 - number] for number in range(new))
        inside = (loss for loss in latest if loss.sector < end and sector < loss.end)
        return sorted(inside, key=lambda loss: loss.sector)

    def log_zeroed(self, image: str, reason: str) -> None:
        """Once for each image: zeroes are answered for content that is missing."""
        if image not in self._zeroed:
            self._zeroed.add(image)
            log.warning("%s: %s; what is missing reads as zeroes (check it)", image, reason)

    def log_damage(self, image: str, reason: str) -> None:
        """Once for each image and reason, of a number that is bounded."""
        if (image, reason) not in self._lines and len(self._lines) < _MOST_LINES:
            self._lines.add((image, reason))
            log.error("%s: %s", image, reason)
