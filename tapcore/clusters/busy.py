"""Busy clusters: who changes what they are must be done before anybody else writes there."""

from __future__ import annotations

from collections.abc import Callable

from tapcore.clusters.map import WritableMap


class Claim:
    """Clusters of the disk, from `first` up to `end`, and what waits for them, in order."""

    __slots__ = ("_busy", "end", "first", "waiting")

    def __init__(self, busy: BusyClusters, first: int, end: int) -> None:
        self._busy = busy
        self.first = first
        self.end = end
        self.waiting: list[Callable[[], int]] = []

    def release(self) -> int:
        """Let the clusters go; returns how many requests those that waited finished."""
        self._busy.remove(self)
        return sum(go_on() for go_on in self.waiting)


class BusyClusters:
    """Those of one disk. The table that maps them, one for each claim, stays in memory.

    Args:
        map: of the disk.

    Attributes:
        claims: by cluster.
    """

    __slots__ = ("_map", "_shift", "claims")

    def __init__(self, map: WritableMap) -> None:
        self._map = map
        self._shift = map.cluster_shift
        self.claims: dict[int, Claim] = {}

    def claim(self, sector: int, stop: int) -> Claim:
        """Take the clusters of a range, none of which is busy."""
        claim = Claim(self, sector >> self._shift, ((stop - 1) >> self._shift) + 1)
        self._map.pin(sector)
        self.claims.update(dict.fromkeys(range(claim.first, claim.end), claim))
        return claim

    def remove(self, claim: Claim) -> None:
        """See `Claim.release`."""
        for cluster in range(claim.first, claim.end):
            del self.claims[cluster]
        self._map.unpin(claim.first << self._shift)

    def at(self, sector: int) -> Claim | None:
        """The claim that a sector's cluster belongs to."""
        return self.claims.get(sector >> self._shift)

    def wait(self, claim: Claim, stop: int, again: Callable[[int], Callable[[], int]]) -> int:
        """Go on when a claim is released: with `again(until)`; returns until where that is."""
        until = min(claim.end << self._shift, stop)
        claim.waiting.append(again(until))
        return until

    def free_until(self, sector: int, stop: int) -> int:
        """The first busy sector of a range of which the first cluster is free; else `stop`."""
        if self.claims:
            for cluster in range((sector >> self._shift) + 1, ((stop - 1) >> self._shift) + 1):
                if cluster in self.claims:
                    return cluster << self._shift
        return stop
