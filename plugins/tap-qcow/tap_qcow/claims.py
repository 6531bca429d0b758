"""Clusters that are being stored for the first time: who else writes there has to wait."""

from __future__ import annotations

from collections.abc import Callable

from tap_qcow.tables import Table


class Claim:
    """Clusters of the disk, from `start` up to `end`, and what waits for them.

    Args:
        claims: those of the image; this one is added.
        table: the L2 table that maps the clusters; it stays in memory meanwhile.
        start: number of the first cluster.
        end: number of the first cluster behind them.

    Attributes:
        table: as given.
        start: as given.
        end: as given.
        waiting: called when the clusters are free; each returns how many requests it finished.
    """

    __slots__ = ("_claims", "end", "start", "table", "waiting")

    def __init__(self, claims: list[Claim], table: Table, start: int, end: int) -> None:
        self._claims = claims
        self.table = table
        self.start = start
        self.end = end
        self.waiting: list[Callable[[], int]] = []
        claims.append(self)
        table.pins += 1

    def release(self) -> int:
        """Let the clusters go; returns how many requests those that waited finished."""
        self._claims.remove(self)
        self.table.pins -= 1
        return sum(go_on() for go_on in self.waiting)


def claim_of(claims: list[Claim], cluster: int) -> Claim | None:
    """The claim that a cluster belongs to."""
    for claim in claims:
        if claim.start <= cluster < claim.end:
            return claim
    return None


def first_claimed(claims: list[Claim], start: int, end: int) -> int:
    """The first cluster from `start` up to `end` that is claimed; `end` where none is."""
    return min(
        (max(c.start, start) for c in claims if c.start < end and c.end > start), default=end
    )
