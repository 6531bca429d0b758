"""What a snapshot says, and what has happened between two, in the figures that people want."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from tapcore.metrics.operations import SIZES
from tapcore.metrics.reading import Counts, Durations, Snapshot

_PERCENTILES: Final[Mapping[str, float]] = {"p50": 50.0, "p99": 99.0, "p999": 99.9}
_MICROSECONDS: Final = 1e6


@attrs.frozen
class Rates:
    """What a disk did in a while, a second of it.

    Attributes:
        requests: answered.
        bytes: moved.
        errors: answers that were errors.
        depth: requests under way in the mean.
        p50: a duration (s) that half of the requests have not exceeded; 0.0 where none was.
        p99: the same of 99 in a hundred.
        p999: the same of 999 in a thousand.
    """

    requests: float = 0.0
    bytes: float = 0.0
    errors: float = 0.0
    depth: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0

    @classmethod
    def of(cls, counts: Counts, seconds: float) -> Rates:
        """Of what was counted in so many seconds."""
        total = counts.total
        found = [total.percentile(percent) / _MICROSECONDS for percent in _PERCENTILES.values()]
        return cls(
            counts.answered / seconds,
            counts.bytes / seconds,
            counts.errors / seconds,
            total.sum / _MICROSECONDS / seconds,
            *found,
        )


def between(before: Snapshot, now: Snapshot) -> tuple[Snapshot, float]:
    """What has come since, and in how many seconds; never none."""
    begun = before.updated if before.started == now.started else now.started
    return now.since(before), max(now.updated - begun, 1e-3)


def snapshot_as_dict(seen: Snapshot) -> dict[str, Any]:
    """For programs: durations in microseconds."""
    return {
        "name": seen.name,
        "image": seen.image,
        "handle": seen.driver,
        "pid": seen.process,
        "started": seen.started,
        "updated": seen.updated,
        "clients": seen.clients,
        "in_flight": seen.in_flight,
        "waiting": seen.waiting,
        "gone": seen.gone,
        "virtual_size": seen.size,
        "operations": {each: _operation(seen, each) for each in seen.operations()},
    }


def _operation(seen: Snapshot, operation: str) -> dict[str, Any]:
    sizes = {
        size: _counts(seen.cells[operation, size])
        for size in SIZES
        if (operation, size) in seen.cells
    }
    return {**_counts(seen.of(operation)), "sizes": sizes}


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        "answered": counts.answered,
        "errors": counts.errors,
        "bytes": counts.bytes,
        "past_driver": counts.moved,
        "total": _durations(counts.total),
        "waiting": _durations(counts.waiting),
        "driver": _durations(counts.driver),
        "replying": _durations(counts.replying),
    }


def _durations(durations: Durations) -> dict[str, int]:
    count = durations.count
    found = {name: durations.percentile(percent) for name, percent in _PERCENTILES.items()}
    return {"count": count, "sum_us": durations.sum, **{f"{k}_us": v for k, v in found.items()}}
