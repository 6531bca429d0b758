"""Durations in log-linear buckets: as HdrHistogram's, with a fixed number of them.

Up to 16 µs each microsecond has a bucket; from there on each doubling has eight, so that a duration
is known to an eighth. The last bucket has everything from its start on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_BITS: Final = 3
_LINEAR: Final = 2 << _BITS

BUCKETS: Final = 200
"""The last begins at 2 minutes."""


def bucket_of(microseconds: int) -> int:
    """The number of the bucket of a duration, which is not negative."""
    if microseconds < _LINEAR:
        return microseconds
    shift = microseconds.bit_length() - _BITS - 1
    bucket = (shift << _BITS) + (microseconds >> shift)
    return bucket if bucket < BUCKETS else BUCKETS - 1


def start_of(bucket: int) -> int:
    """The shortest duration in a bucket, in microseconds; of `BUCKETS`: behind the last but one."""
    if bucket < _LINEAR:
        return bucket
    shift = (bucket >> _BITS) - 1
    return (bucket - (shift << _BITS)) << shift


STARTS: Final = tuple(start_of(bucket) for bucket in range(BUCKETS + 1))
"""Of each bucket, and where the next one would begin."""


def percentile(counts: Sequence[int], percent: float) -> int:
    """A duration that so many percent of all have not exceeded: the end of the bucket it lies in.

    Args:
        counts: of each bucket.
        percent: above 0, at most 100.

    Returns:
        Microseconds; 0 where nothing was counted.
    """
    total = sum(counts)
    wanted = total * percent / 100
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return STARTS[bucket + 1]
    return 0
