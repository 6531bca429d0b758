"""Latencies of very many requests, in bounded memory."""

from __future__ import annotations

from array import array
from typing import Final

_KEPT: Final = 1 << 20


class Latencies:
    """Samples in nanoseconds; of more than a million every second one is kept, then every fourth,
    and so on, so that percentiles stay those of the whole run.

    Attributes:
        count: samples added.
        total: their sum, ns.
        longest: the longest one, ns.
    """

    __slots__ = ("_samples", "_stride", "count", "longest", "total")

    def __init__(self) -> None:
        self._samples = array("Q")
        self._stride = 1
        self.count = 0
        self.total = 0
        self.longest = 0

    def add(self, nanoseconds: int) -> None:
        """One more."""
        self.total += nanoseconds
        if nanoseconds > self.longest:
            self.longest = nanoseconds
        if not self.count % self._stride:
            self._samples.append(nanoseconds)
            if len(self._samples) >= _KEPT:
                self._samples = self._samples[::2]
                self._stride *= 2
        self.count += 1

    def percentiles(self, *percents: float) -> list[int]:
        """Nanoseconds within which these shares of the requests were finished."""
        ordered = sorted(self._samples)
        if not ordered:
            return [0 for _ in percents]
        last = len(ordered) - 1
        return [ordered[min(int(len(ordered) * percent / 100), last)] for percent in percents]

    @property
    def mean(self) -> float:
        """Nanoseconds."""
        return self.total / self.count if self.count else 0.0
