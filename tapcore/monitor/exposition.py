"""The counters of disks as Prometheus wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

from tapcore.errors import UsageError
from tapcore.metrics.buckets import STARTS
from tapcore.metrics.reading import Counts, Durations, Snapshot

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.exposition import choose_encoder
except ImportError:
    raise UsageError("this needs 'pip install tapcore[metrics]' (prometheus-client)") from None

_DISK: Final = ("disk", "driver")
_OPERATION: Final = (*_DISK, "operation")
_SIZE: Final = (*_OPERATION, "size")

_BOUNDS: Final = tuple(1 << power for power in range(3, 27))
"""Microseconds: the ends of buckets that are shown."""

_COUNTERS: Final[Sequence[tuple[str, str, Callable[[Counts], int]]]] = (
    ("tapcore_requests", "Requests answered.", lambda counts: counts.answered),
    ("tapcore_request_errors", "Requests answered with an error.", lambda counts: counts.errors),
    ("tapcore_request_bytes", "Bytes of requests without an error.", lambda counts: counts.bytes),
    (
        "tapcore_requests_past_driver",
        "Requests whose content went past the driver.",
        lambda counts: counts.moved,
    ),
)

_PARTS: Final[Sequence[tuple[str, str, Callable[[Counts], Durations]]]] = (
    (
        "tapcore_request_waiting_seconds",
        "Time from a request's arrival until its driver was asked.",
        lambda counts: counts.waiting,
    ),
    (
        "tapcore_request_driver_seconds",
        "Time from a driver's being asked until its answer.",
        lambda counts: counts.driver,
    ),
    (
        "tapcore_request_replying_seconds",
        "Time from a driver's answer to the answer to the client.",
        lambda counts: counts.replying,
    ),
)

_GAUGES: Final[Sequence[tuple[str, str, Callable[[Snapshot], float]]]] = (
    ("tapcore_requests_in_flight", "Requests not answered yet.", lambda seen: seen.in_flight),
    ("tapcore_requests_waiting", "Parts that wait for their driver.", lambda seen: seen.waiting),
    ("tapcore_clients", "Clients that are connected.", lambda seen: seen.clients),
    ("tapcore_disk_size_bytes", "Virtual size of the disk.", lambda seen: seen.size),
    ("tapcore_disk_start_time_seconds", "When it was opened.", lambda seen: seen.started),
)


class _Disks:
    """A collector of prometheus_client."""

    def __init__(self, disks: Sequence[Snapshot]) -> None:
        self._disks = disks

    def collect(self) -> Iterator[Metric]:
        """The families of metrics."""
        yield from map(self._counter, *zip(*_COUNTERS, strict=True))
        gone = CounterMetricFamily(
            "tapcore_requests_abandoned", "Requests whose client had gone.", labels=_DISK
        )
        total = HistogramMetricFamily(
            "tapcore_request_duration_seconds",
            "Time from a request's arrival to its answer.",
            labels=_SIZE,
        )
        for seen in self._disks:
            gone.add_metric(_labels(seen), seen.gone)
            for place, counts in seen.cells.items():
                _add(total, [*_labels(seen), *place], counts.total)
        yield from (gone, total)
        yield from map(self._part, *zip(*_PARTS, strict=True))
        yield from map(self._gauge, *zip(*_GAUGES, strict=True))

    def _counter(self, name: str, text: str, value: Callable[[Counts], int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=_SIZE)
        for seen in self._disks:
            for place, counts in seen.cells.items():
                family.add_metric([*_labels(seen), *place], value(counts))
        return family

    def _part(self, name: str, text: str, value: Callable[[Counts], Durations]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=_OPERATION)
        for seen in self._disks:
            for operation in seen.operations():
                _add(family, [*_labels(seen), operation], value(seen.of(operation)))
        return family

    def _gauge(self, name: str, text: str, value: Callable[[Snapshot], float]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_DISK)
        for seen in self._disks:
            family.add_metric(_labels(seen), value(seen))
        return family


def _labels(seen: Snapshot) -> list[str]:
    return [seen.name, seen.driver]


def _add(family: Any, labels: Sequence[str], durations: Durations) -> None:
    below = dict(zip(STARTS[1:], accumulate(durations.counts), strict=True))
    buckets = [(repr(bound / 1e6), below[bound]) for bound in _BOUNDS]
    family.add_metric(labels, [*buckets, ("+Inf", durations.count)], durations.sum / 1e6)


def exposition(disks: Sequence[Snapshot], accept: str) -> tuple[str, bytes]:
    """The text that Prometheus scrapes.

    Args:
        disks: their counters.
        accept: the request's header, which may ask for OpenMetrics.

    Returns:
        Its type, and the text.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Disks(disks))
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)
