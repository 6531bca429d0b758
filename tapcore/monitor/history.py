"""What disks did in each of the last seconds, as long as somebody looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, TypeAlias

import attrs

from tapcore.metrics.reading import Snapshot
from tapcore.process.timer import Timer

SAMPLES: Final = 60
"""Kept of each disk."""

SAMPLE_SECONDS: Final = 1.0

LOOKED_AT_SECONDS: Final = 15.0
"""So long after a page was loaded, samples are taken; who is away for longer begins anew."""

_Key: TypeAlias = tuple[str, float]


@attrs.frozen
class Sample:
    """What a disk did in about a second, a second of it.

    Attributes:
        reads: requests answered.
        writes: the same.
        bytes: moved by all requests.
    """

    reads: float
    writes: float
    bytes: float


@attrs.frozen
class _Mark:
    """What was counted up to a moment."""

    at: float
    reads: int
    writes: int
    bytes: int

    @classmethod
    def of(cls, seen: Snapshot, at: float) -> _Mark:
        reads = writes = moved = 0
        for (operation, _), counts in seen.cells.items():
            reads += counts.answered if operation == "read" else 0
            writes += counts.answered if operation == "write" else 0
            moved += counts.bytes if operation in ("read", "write") else 0
        return cls(at, reads, writes, moved)

    def sample(self, before: _Mark) -> Sample:
        """What has come since."""
        seconds = max(self.at - before.at, 1e-3)
        return Sample(
            (self.reads - before.reads) / seconds,
            (self.writes - before.writes) / seconds,
            (self.bytes - before.bytes) / seconds,
        )


@attrs.define
class _Disk:
    mark: _Mark
    samples: deque[Sample] = attrs.field(factory=lambda: deque(maxlen=SAMPLES))


class History:
    """The last samples of each disk.

    Args:
        look: at the disks.
        clock: seconds, monotonic.
    """

    def __init__(
        self, look: Callable[[], list[Snapshot]], clock: Callable[[], float] = monotonic
    ) -> None:
        self._look = look
        self._clock = clock
        self._disks: dict[_Key, _Disk] = {}
        self._until = -1.0
        self._timer: Timer | None = None
        self._runs = False

    def live_in(self, timer: Timer) -> None:
        """Take samples by the timer of a loop."""
        self._timer = timer

    def looked_at(self) -> None:
        """Somebody loads a page: samples are worth their while."""
        self._until = self._clock() + LOOKED_AT_SECONDS
        if not self._runs and self._timer is not None:
            self._runs = True
            self._tick()

    def of(self, seen: Snapshot) -> Sequence[Sample]:
        """Of a disk, the oldest first."""
        disk = self._disks.get(_key(seen))
        return () if disk is None else tuple(disk.samples)

    def take(self) -> None:
        """One more sample of each disk; those that are gone are forgotten."""
        now, before = self._clock(), self._disks
        self._disks = {}
        for seen in self._look():
            mark, disk = _Mark.of(seen, now), before.get(_key(seen))
            if disk is None:
                disk = _Disk(mark)
            else:
                disk.samples.append(mark.sample(disk.mark))
                disk.mark = mark
            self._disks[_key(seen)] = disk

    def _tick(self) -> None:
        if self._clock() > self._until:
            self._runs = False
            self._disks = {}
            return
        assert self._timer is not None
        self._timer.put(SAMPLE_SECONDS, self._tick)
        self.take()


def _key(seen: Snapshot) -> _Key:
    return seen.name, seen.started
