"""Busy clusters: who changes what they are must be done before anybody else writes there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final


class Claim:
    """Clusters of the disk, from `first` up to `end`, and what waits for them, in order."""

    __slots__ = ("end", "first", "waiting")

    def __init__(self, first: int, end: int) -> None:
        self.first = first
        self.end = end
        self.waiting: list[Callable[[], int]] = []


_BUCKET: Final = 10
"""log2 of the sectors by which claims are found: 512 KiB, or a cluster. A piece of a copy takes two
of them, and of small writes few are under way so close to each other."""


class BusyClusters:
    """Those of one disk.

    Args:
        shift: log2 of a cluster's sectors.

    Attributes:
        claims: by the parts of the disk in which their clusters lie; empty where there is none.
    """

    __slots__ = ("_bucket", "_shift", "claims")

    def __init__(self, shift: int) -> None:
        self._shift = shift
        self._bucket = max(_BUCKET - shift, 0)
        self.claims: dict[int, list[Claim]] = {}

    def _buckets(self, first: int, end: int) -> range:
        return range(first >> self._bucket, ((end - 1) >> self._bucket) + 1)

    def take(self, claim: Claim) -> None:
        """From now on the clusters of a claim, none of which was busy, are."""
        for bucket in self._buckets(claim.first, claim.end):
            self.claims.setdefault(bucket, []).append(claim)

    def release(self, claim: Claim) -> int:
        """Let them go; returns how many requests those that waited finished."""
        for bucket in self._buckets(claim.first, claim.end):
            here = self.claims.pop(bucket)
            if len(here) > 1:
                here.remove(claim)
                self.claims[bucket] = here
        return sum([go_on() for go_on in claim.waiting]) if claim.waiting else 0

    def at(self, sector: int) -> Claim | None:
        """The claim that a sector's cluster belongs to."""
        cluster = sector >> self._shift
        for claim in self.claims.get(cluster >> self._bucket, ()):
            if claim.first <= cluster < claim.end:
                return claim
        return None

    def wait(self, claim: Claim, stop: int, again: Callable[[int], Callable[[], int]]) -> int:
        """Go on when a claim is released: with `again(until)`; returns until where that is."""
        until = min(claim.end << self._shift, stop)
        claim.waiting.append(again(until))
        return until

    def free_until(self, sector: int, stop: int) -> int:
        """The first busy sector of a range of which the first cluster is free; else `stop`."""
        if not self.claims:
            return stop
        first, end = sector >> self._shift, ((stop - 1) >> self._shift) + 1
        for bucket in self._buckets(first, end):
            found = [claim.first for claim in self.claims.get(bucket, ()) if claim.first > first]
            if found and min(found) < end:
                return min(found) << self._shift
        return stop

    def any_in(self, sector: int, stop: int) -> bool:
        """Whether any of a range of sectors is in a busy cluster."""
        first, end = sector >> self._shift, ((stop - 1) >> self._shift) + 1
        return any(
            claim.first < end and first < claim.end
            for here in self.claims.values()
            for claim in here
        )
