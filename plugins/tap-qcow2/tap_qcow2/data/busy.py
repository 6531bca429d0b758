"""Clusters of the disk that are being allocated: what else wants to change them waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Waiting: TypeAlias = Callable[[], int]
"""Goes on with something that had to wait; returns how many requests it completed."""


class BusyClusters(dict[int, list[Waiting]]):
    """What waits for each busy cluster, by its number; a dict, which the short way asks quickly."""

    __slots__ = ()

    def begin(self, cluster: int, count: int = 1) -> None:
        """Clusters, from one on, are being allocated from now on; none is yet."""
        for number in range(cluster, cluster + count):
            self[number] = []

    def wait(self, cluster: int, then: Waiting) -> None:
        """Go on with something when a busy cluster is allocated, or that has failed."""
        self[cluster].append(then)

    def end(self, cluster: int, count: int = 1) -> int:
        """They are allocated, or that failed: go on with what waited; returns what that did."""
        return sum(
            go_on() for number in range(cluster, cluster + count) for go_on in self.pop(number, ())
        )
