"""Grants: the pages that a front end lends, by reference."""

from __future__ import annotations

from typing import Protocol

from tapcore.ring.wire import PAGE

NOT_GRANTED = -1


class Grants(Protocol):
    """Pages that a front end lends until the ring ends.

    Attributes:
        memory: all of them. It must not go away under whoever touches it.
    """

    @property
    def memory(self) -> memoryview: ...

    def place(self, gref: int, /) -> int:
        """Where a page lies in `memory` (bytes), whatever number a hostile front end gives.

        A transport that has to map it does so here, and keeps it mapped (persistent grants).

        Returns:
            NOT_GRANTED where there is no such page.
        """


class DataPages:
    """Grants that are the numbers of pages of one piece of memory.

    Args:
        memory: whole pages, writable.
    """

    __slots__ = ("_count", "memory")

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._count = len(memory) // PAGE

    def place(self, gref: int) -> int:
        """See `Grants`."""
        return gref * PAGE if 0 <= gref < self._count else NOT_GRANTED
