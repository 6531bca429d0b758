"""Data I/O that is under way: so that no cluster is given out again while something old uses it.

A read or write that waits for the disk may outlive the cluster that it is about: discarded, counted
down, given out anew. What must wait for that gets behind a barrier, which opens when all I/O that
had begun before it has finished.
"""

from __future__ import annotations

from collections.abc import Callable

from tapcore import Then


class InFlight:
    """Counts queued I/O by the barrier that it began after."""

    __slots__ = ("_barriers", "_counts", "_epoch")

    def __init__(self) -> None:
        self._epoch = 0
        self._counts: dict[int, int] = {}
        self._barriers: list[tuple[int, Callable[[], object]]] = []

    def counted(self, then: Then) -> Then:
        """What follows an operation that is now queued; it must be called once."""
        epoch = self._epoch
        counts = self._counts
        counts[epoch] = counts.get(epoch, 0) + 1

        def finished(res: int) -> int:
            counts[epoch] -= 1
            if not counts[epoch]:
                del counts[epoch]
                if self._barriers:
                    self._open()
            return then(res)

        return finished

    def barrier(self, then: Callable[[], object]) -> None:
        """Call `then` when all that is under way now has finished; at once if nothing is."""
        if not self._counts:
            then()
            return
        self._barriers.append((self._epoch, then))
        self._epoch += 1

    def _open(self) -> None:
        oldest = min(self._counts, default=self._epoch)
        while self._barriers and self._barriers[0][0] < oldest:
            _, then = self._barriers.pop(0)
            then()
