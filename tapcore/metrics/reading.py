"""Looking at the counters of a disk, in its page: nobody is asked, and nobody waits."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from tapcore.errors import TapError
from tapcore.metrics import layout
from tapcore.metrics.buckets import BUCKETS, percentile
from tapcore.metrics.operations import OPERATIONS, SIZES

_LOOKS: Final = 50
_BETWEEN_SECONDS: Final = 0.001


class NotAPageError(TapError):
    """A file is not a page of counters, or one of another version."""


@attrs.frozen
class Durations:
    """A histogram.

    Attributes:
        sum: of all durations, in microseconds.
        counts: how many lie in each bucket (`tapcore.metrics.buckets`).
    """

    sum: int
    counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts)

    def percentile(self, percent: float) -> int:
        """See `tapcore.metrics.buckets.percentile`; microseconds."""
        return percentile(self.counts, percent)

    def with_(self, other: Durations) -> Durations:
        """Those of both."""
        counts = map(int.__add__, self.counts, other.counts)
        return Durations(self.sum + other.sum, tuple(counts))

    def since(self, before: Durations) -> Durations:
        """Those that have come since."""
        counts = map(int.__sub__, self.counts, before.counts)
        return Durations(self.sum - before.sum, tuple(counts))


NO_DURATIONS: Final = Durations(0, (0,) * BUCKETS)


@attrs.frozen
class Counts:
    """What was counted of an operation and size class, or of several.

    Attributes:
        answered: requests that were.
        errors: those of them that failed.
        bytes: of those that did not.
        moved: requests whose content went past the driver.
        total: from taken to answered.
        waiting: from taken to queued to the driver, of requests that had one.
        driver: from there to its answer.
        replying: from there to the answer to the client.
    """

    answered: int = 0
    errors: int = 0
    bytes: int = 0
    moved: int = 0
    total: Durations = NO_DURATIONS
    waiting: Durations = NO_DURATIONS
    driver: Durations = NO_DURATIONS
    replying: Durations = NO_DURATIONS

    def with_(self, other: Counts) -> Counts:
        """What both have."""
        return Counts(
            self.answered + other.answered,
            self.errors + other.errors,
            self.bytes + other.bytes,
            self.moved + other.moved,
            self.total.with_(other.total),
            self.waiting.with_(other.waiting),
            self.driver.with_(other.driver),
            self.replying.with_(other.replying),
        )

    def since(self, before: Counts) -> Counts:
        """What has come since."""
        return Counts(
            self.answered - before.answered,
            self.errors - before.errors,
            self.bytes - before.bytes,
            self.moved - before.moved,
            self.total.since(before.total),
            self.waiting.since(before.waiting),
            self.driver.since(before.driver),
            self.replying.since(before.replying),
        )


NO_COUNTS: Final = Counts()


@attrs.frozen
class Snapshot:
    """A page at one moment.

    Attributes:
        driver: its handle.
        name: of the disk, as clients know it.
        image: its file.
        process: that writes the page.
        started: Unix time in seconds.
        updated: when this was so; Unix time in seconds.
        in_flight: requests taken and not answered.
        waiting: those of them that wait for their driver.
        clients: how many are connected.
        gone: requests whose client had gone before they were answered.
        size: of the disk, in bytes.
        cells: by the names of operation and size class; those without a request are not there.
        torn: the writer ended, or stopped, in the middle of writing.
    """

    driver: str
    name: str
    image: str
    process: int
    started: float
    updated: float
    in_flight: int
    waiting: int
    clients: int
    gone: int
    size: int
    cells: dict[tuple[str, str], Counts]
    torn: bool = False

    def of(self, *operations: str) -> Counts:
        """All size classes of some operations together; without any: all operations."""
        return together(
            counts
            for (operation, _), counts in self.cells.items()
            if not operations or operation in operations
        )

    def operations(self) -> list[str]:
        """Those that there were, in order."""
        found = {operation for operation, _ in self.cells}
        return [operation for operation in OPERATIONS if operation in found]

    def since(self, before: Snapshot) -> Snapshot:
        """What has come since; all of it, where another process has begun anew."""
        if (before.process, before.started) != (self.process, self.started):
            return self
        cells = {
            place: counts.since(before.cells.get(place, NO_COUNTS))
            for place, counts in self.cells.items()
        }
        return attrs.evolve(self, cells=cells)


def together(several: Iterable[Counts]) -> Counts:
    """The sum of several."""
    found = NO_COUNTS
    for counts in several:
        found = found.with_(counts)
    return found


def read_page(path: str) -> Snapshot:
    """Look at a page.

    Raises:
        OSError: it cannot be read.
        NotAPageError: it is none.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_fd(fd, path)
    finally:
        os.close(fd)


def read_fd(fd: int, name: str = "") -> Snapshot:
    """The same of an open file; `name` is for messages."""
    torn = True
    for _ in range(_LOOKS):
        before = os.pread(fd, layout.SEQUENCE.size, layout.SEQUENCE_AT)
        content = os.pread(fd, layout.PAGE_SIZE, 0)
        if before == os.pread(fd, layout.SEQUENCE.size, layout.SEQUENCE_AT) and not _odd(before):
            torn = False
            break
        time.sleep(_BETWEEN_SECONDS)
    _check(content, name)
    return _snapshot(content, torn=torn)


def _odd(sequence: bytes) -> bool:
    return bool(sequence) and bool(sequence[0] & 1)


def _check(content: bytes, name: str) -> None:
    if content[: len(layout.MAGIC)] != layout.MAGIC:
        raise NotAPageError("this is not a page of counters", image=name)
    _, version, head, cell, operations, sizes, buckets, _, _ = layout.HEAD.unpack_from(content)
    if version != layout.VERSION:
        raise NotAPageError(f"its layout is version {version}, not {layout.VERSION}", image=name)
    told = head, cell, operations, sizes, buckets, len(content)
    known = (
        layout.CELLS_AT,
        layout.CELL_SIZE,
        len(OPERATIONS),
        len(SIZES),
        BUCKETS,
        layout.PAGE_SIZE,
    )
    if told != known:
        raise NotAPageError("the page is damaged, or cut short", image=name)


def _snapshot(content: bytes, *, torn: bool) -> Snapshot:
    *_, process, started = layout.HEAD.unpack_from(content)
    gauges = layout.GAUGES.unpack_from(content, layout.GAUGES_AT)
    updated, in_flight, waiting, clients, gone, size = gauges
    driver, name, image = map(_text, layout.TEXTS.unpack_from(content, layout.TEXTS_AT))
    return Snapshot(
        driver=driver,
        name=name,
        image=image,
        process=process,
        started=started / 1e9,
        updated=updated / 1e9,
        in_flight=in_flight,
        waiting=waiting,
        clients=clients,
        gone=gone,
        size=size,
        cells=dict(_cells(content)),
        torn=torn,
    )


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _cells(content: bytes) -> Iterator[tuple[tuple[str, str], Counts]]:
    for number, operation in enumerate(OPERATIONS):
        for place, size in enumerate(SIZES):
            at = layout.cell_at(number, place)
            counters = layout.COUNTERS.unpack_from(content, at)
            if counters[0]:
                yield (operation, size), Counts(*counters, *_histograms(content, at))


def _histograms(content: bytes, at: int) -> Iterator[Durations]:
    at += layout.COUNTERS.size
    for _ in layout.HISTOGRAMS:
        total, *counts = layout.HISTOGRAM.unpack_from(content, at)
        yield Durations(total, tuple(counts))
        at += layout.HISTOGRAM.size
