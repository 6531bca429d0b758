"""Counters of one operation and size class, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tapcore.metrics.buckets import BUCKETS, bucket_of

MICROSECONDS: Final = 1e6


class Histogram:
    """Durations.

    Attributes:
        counts: how many lie in each bucket.
        sum: of all, in microseconds.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.sum = 0

    def add(self, duration: int, count: int = 1) -> None:
        """So many requests took so long (µs)."""
        self.counts[bucket_of(duration)] += count
        self.sum += duration * count


class Cell:
    """Requests of one operation and size class. Plain slots: every batch counts here.

    Attributes:
        answered: requests that were.
        errors: those of them that failed.
        bytes: of those that did not.
        moved: requests whose content went past the driver.
        total: from taken to answered.
        waiting: from taken to queued to the driver, of requests that had one.
        driver: from there to its answer.
        replying: from there to the answer to the client.
        driven: how many are in the last three.
    """

    __slots__ = (
        "answered",
        "bytes",
        "driven",
        "driver",
        "errors",
        "moved",
        "replying",
        "total",
        "waiting",
    )

    def __init__(self) -> None:
        self.answered = self.errors = self.bytes = self.moved = self.driven = 0
        self.total = Histogram()
        self.waiting = Histogram()
        self.driver = Histogram()
        self.replying = Histogram()

    def count_moved(self, length: int, duration: int, count: int) -> None:
        """So many requests went past the driver: of so many bytes each, in so many microseconds."""
        self.answered += count
        self.moved += count
        self.bytes += count * length
        self.total.add(duration, count)

    def count_driven(
        self, length: int, durations: Sequence[int], count: int, *, failed: bool
    ) -> None:
        """So many requests had a driver.

        Args:
            length: bytes of each.
            durations: of waiting, driver, and replying, in microseconds.
            count: how many.
            failed: the answer was an error.
        """
        waiting, driver, replying = durations
        self.answered += count
        self.driven += count
        if failed:
            self.errors += count
        else:
            self.bytes += count * length
        self.total.add(waiting + driver + replying, count)
        self.waiting.add(waiting, count)
        self.driver.add(driver, count)
        self.replying.add(replying, count)

    def count_told(self, length: int, duration: int, *, failed: bool) -> None:
        """A request had neither: of so many bytes, answered in so many microseconds."""
        self.answered += 1
        if failed:
            self.errors += 1
        else:
            self.bytes += length
        self.total.add(duration)
