"""How much a view may take, alone and together with all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

GRANT: Final = 1 << 20
"""Bytes that a view takes at once of what it may have, before it asks again what it really uses."""

BLOCK: Final = 4096
"""Bytes of which the memory, or the file system, of a view is taken in whole multiples."""


class Total:
    """What all views together may take.

    Args:
        limit: bytes.

    Attributes:
        taken: bytes that views have, or may take without asking again.
    """

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0


class Space:
    """What one view may take.

    To ask how much it really uses is a system call: so it takes a little more than it needs at
    once, and asks again when that is used up.

    Args:
        limit: bytes.
        total: of all views.
        used: tells how many bytes this one uses.
    """

    __slots__ = ("_limit", "_sure", "_taken", "_total", "_used")

    def __init__(self, limit: int, total: Total, used: Callable[[], int]) -> None:
        self._limit = limit
        self._total = total
        self._used = used
        self._taken = 0  # counted in the total
        self._sure = 0  # of that: not asked for yet

    def take(self, offset: int, length: int) -> bool:
        """Whether a range (bytes) may be written, of which nothing may be there yet."""
        need = (((offset + length + BLOCK - 1) // BLOCK) - offset // BLOCK) * BLOCK
        if need > self._sure and not self._ask(need):
            return False
        self._sure -= need
        return True

    def _ask(self, need: int) -> bool:
        used = self._used()
        most = min(self._limit - used, self._total.limit - self._total.taken + self._taken - used)
        if need > most:
            self._count(used, 0)
            return False
        self._count(used, min(most, need + GRANT))
        return True

    def _count(self, used: int, sure: int) -> None:
        self._total.taken += used + sure - self._taken
        self._taken, self._sure = used + sure, sure

    def give_back(self) -> None:
        """The view uses nothing any more."""
        self._count(0, 0)
