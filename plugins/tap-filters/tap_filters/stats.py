"""`stats`: what a disk was asked for, and how long its answers took."""

from __future__ import annotations

import json
import sys
from collections import Counter
from time import perf_counter_ns
from typing import Any, Final, TextIO

import attrs

from tapcore import BLK_NOT_ALLOCATED, DiskDriver, Filter, FilterCall

_STEPS: Final = 8
"""Classes of the histogram for each doubling: a latency is known within 9 %."""


@attrs.define(eq=False)
class Tally:
    """Of one operation of one image.

    Attributes:
        requests: answered.
        bytes: of these.
        errors: requests that failed, in part or as a whole.
        holes: bytes of reads that the image did not hold.
        longest: latency in ns.
        total: of all latencies, ns.
    """

    requests: int = 0
    bytes: int = 0
    errors: int = 0
    holes: int = 0
    longest: int = 0
    total: int = 0
    _classes: Counter[int] = attrs.field(factory=Counter)

    def add(self, nanoseconds: int, length: int) -> None:
        """A request was answered."""
        self.requests += 1
        self.bytes += length
        self.total += nanoseconds
        self.longest = max(self.longest, nanoseconds)
        self._classes[_class_of(nanoseconds)] += 1

    def percentile(self, percent: float) -> float:
        """The latency (µs) that so many percent of the requests did not exceed."""
        left = self.requests * percent / 100
        for number in sorted(self._classes):
            left -= self._classes[number]
            if left <= 0:
                return min(2 ** ((number + 1) / _STEPS), self.longest) / 1000
        return self.longest / 1000

    def as_dict(self) -> dict[str, Any]:
        """For JSON: latencies in µs."""
        latency = {f"p{p}": round(self.percentile(p), 1) for p in (50, 90, 99)}
        mean = round(self.total / 1000 / max(self.requests, 1), 1)
        return {
            "requests": self.requests,
            "bytes": self.bytes,
            "errors": self.errors,
            "hole_bytes": self.holes,
            "latency_us": {"mean": mean, **latency, "max": round(self.longest / 1000, 1)},
        }


def _class_of(nanoseconds: int) -> int:
    """Number n: up to 2 to the power of (n + 1) / 8 nanoseconds."""
    bits = max(nanoseconds, 1).bit_length() - 1
    inside = (max(nanoseconds, 1) << _STEPS >> bits) - (1 << _STEPS)  # 0 to 255, of 256
    step = sum(inside >= round((2 ** (k / _STEPS) - 1) * 256) for k in range(1, _STEPS))
    return bits * _STEPS + step


@attrs.define
class _Begun:
    at: int
    failed: bool = False


class Stats(Filter):
    """Requests are counted, with their bytes, errors and latencies; told when an image is closed.

    A latency is from the moment when the image is asked to its last answer. What the image does not
    hold (`hole_bytes`) is read from its parent then, which has a tally of its own.

    Args:
        file: to which one line of JSON is added for each image; "": text on standard error.

    Attributes:
        images: for each image, by name, the tallies of its operations.
    """

    title = "counts requests, bytes, errors and latencies"

    def __init__(self, *, file: str = "") -> None:
        self._file = file
        self._out: TextIO | None = None
        self._open = 0
        self.images: dict[str, dict[str, Tally]] = {}
        if file:
            open(file, "a", encoding="utf-8").close()

    def request(self, call: FilterCall) -> None:
        """It begins."""
        call.note = _Begun(perf_counter_ns())
        call.go_on()

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        """Some of it is answered, or all."""
        begun: _Begun = call.note
        tally = self.images.setdefault(call.dd.name, {}).setdefault(call.op, Tally())
        if res == BLK_NOT_ALLOCATED:
            tally.holes += nb_sectors * 512
        elif res and not begun.failed:
            begun.failed = True
            tally.errors += 1
        # before the answer is given on: its owner may take long, and ask again
        if call.owed <= (nb_sectors if call.nb_sectors else 1):
            tally.add(perf_counter_ns() - begun.at, call.length)
        call.answer(res, sector, nb_sectors)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """All of it: for each image and operation what `Tally.as_dict` says."""
        return {
            name: {op: tally.as_dict() for op, tally in tallies.items()}
            for name, tallies in self.images.items()
        }

    def opened(self, dd: DiskDriver[Any]) -> None:
        """From now on the file stays open: a process that is confined opens none any more."""
        self._open += 1
        if self._file and self._out is None:
            self._out = open(self._file, "a", encoding="utf-8")  # noqa: SIM115

    def closed(self, dd: DiskDriver[Any]) -> None:
        """Tell of the image."""
        self._open -= 1
        found = self.as_dict().get(dd.name, {})
        if self._out is None:
            for op, row in found.items():
                print(_line(dd.name, op, row), file=sys.stderr)
            return
        self._out.write(json.dumps({"image": dd.name, "operations": found}) + "\n")
        self._out.flush()
        if not self._open:
            self._out.close()
            self._out = None


def _line(image: str, op: str, row: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {value:g}" for name, value in row["latency_us"].items())
    more = "".join(f", {row[key]} {key}" for key in ("errors", "hole_bytes") if row[key])
    return f"{image!r}: {op}: {row['requests']} requests, {row['bytes']} bytes{more}; µs: {times}"
