"""The counters of disks, in memory: one thread counts, a batch of its loop at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Final, Protocol, TypeAlias

from tapcore.engine import READ, WRITE
from tapcore.metrics.cells import MICROSECONDS, Cell
from tapcore.metrics.operations import OPERATIONS, SIZE_OF, SIZES

_FEW: Final = 6
TIMED_SECONDS: Final = 0.0005
"""Batches whose requests no driver had are looked at so often at most: a clock that is read at each
would be a good part of the cost of a request that comes alone."""

_SIZES: Final = len(SIZES)


class Client(Protocol):
    """As much of a connection as is shown."""

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""


Driven: TypeAlias = tuple["Meter", int, int, float, float, int]
"""A request whose driver has answered: whose, operation, length (bytes), when it was taken, when it
was queued to the driver (0.0: at once), 0 or -errno. A plain tuple: each such request has
one, and those of a batch that are equal are counted together."""

Told: TypeAlias = tuple["Meter", int, int, float, bool]
"""A request that was answered without a driver: whose, operation, length (bytes), when it was
taken, whether it failed."""


class Batch:
    """Between two waits of the loop. Front ends note here; who has the loop calls `count`.

    Attributes:
        timed: disks of which requests were taken in this batch, whose duration is looked at.
        driven: requests whose driver has answered.
        told: requests that no driver was asked for, and whose content did not go past it.
        done: when the drivers had answered; set before the answers are sent.
        now: when something was counted last.
        next: when such a look is taken again.
        armed: something may have been counted that is in no page.
        shown: what was counted up to this moment is in the pages.
        due: when they are written again.
    """

    __slots__ = ("armed", "done", "driven", "due", "next", "now", "shown", "timed", "told")

    def __init__(self) -> None:
        self.timed: list[Meter] = []
        self.driven: list[Driven] = []
        self.told: list[Told] = []
        self.done = 0.0
        self.now = 0.0
        self.next = 0.0
        self.armed = False
        self.shown = 0.0
        self.due = 0.0

    def count(self) -> None:
        """Answers have been sent, as far as their clients took them."""
        self.now = now = monotonic()
        self.next = now + TIMED_SECONDS
        self.armed = True
        for meter in self.timed:
            meter.count_moved(now - meter.taken)
            meter.taken = 0.0
        self.timed.clear()
        if self.driven:
            self._count_driven(now)
        if self.told:
            for meter, operation, length, taken, failed in self.told:
                meter.count_told(operation, length, now - taken, failed=failed)
            self.told.clear()

    def _count_driven(self, now: float) -> None:
        driven, done = self.driven, self.done or now
        replying = (now - done) * MICROSECONDS // 1.0
        groups: Iterable[tuple[Driven, int]]
        if driven.count(driven[0]) == len(driven):
            groups = ((driven[0], len(driven)),)
        elif len(driven) <= _FEW:
            groups = ((each, 1) for each in driven)
        else:
            groups = Counter(driven).items()
        for (meter, operation, length, taken, queued, status), count in groups:
            waiting = 0.0
            if queued:
                waiting, taken = (queued - taken) * MICROSECONDS // 1.0, queued
            at_driver = (done - taken) * MICROSECONDS // 1.0
            meter.driven_tally[operation, length, status, waiting, at_driver, replying] += count
        driven.clear()
        self.done = 0.0


class Meter:
    """Counts the requests of one disk.

    Args:
        batch: of the loop that serves the disk.
        name: of the disk, as clients know it.
        image: its file.
        driver: its handle.
        size: bytes.

    Attributes:
        batch: as given.
        clients: those that are connected.
        driven: of the batch.
        driven_tally: how often it was the same of what drivers have answered: operation, length,
            whether it failed, and the three durations (µs).
        gone: requests taken whose client had gone before they were answered.
        reads: lengths of reads that went past the driver and are not counted yet.
        writes: the same of writes.
        told: of the batch.
        taken: when the first request of a batch that is timed was taken (`time.monotonic`); 0.0:
            this one is not.
        waiting: tells how many requests wait for their driver.
    """

    __slots__ = (
        "_cells",
        "_duration",
        "batch",
        "clients",
        "driven",
        "driven_tally",
        "driver",
        "gone",
        "image",
        "name",
        "reads",
        "size",
        "taken",
        "told",
        "waiting",
        "writes",
    )

    def __init__(
        self, batch: Batch, name: str, *, image: str = "", driver: str = "", size: int = 0
    ) -> None:
        self.batch = batch
        self.driven = batch.driven
        self.told = batch.told
        self.name = name
        self.image = image
        self.driver = driver
        self.size = size
        self._cells: list[Cell | None] = [None] * (len(OPERATIONS) * len(SIZES))
        self._duration = 0
        self.driven_tally: defaultdict[tuple[int, int, int, float, float, float], int] = (
            defaultdict(int)
        )
        self.clients: set[Client] = set()
        self.waiting: Callable[[], int] = _none
        self.gone = 0
        self.reads: list[int] = []
        self.writes: list[int] = []
        self.taken = 0.0

    def arrived(self, client: Client) -> None:
        """Somebody has connected."""
        self.clients.add(client)
        self.batch.armed = True

    def left(self, client: Client) -> None:
        """He has gone: what he has in flight will not be answered."""
        self.clients.discard(client)
        self.gone += client.in_flight
        self.batch.armed = True

    def time_batch(self, now: float) -> None:
        """Look how long a batch takes, of which requests were taken `now`."""
        if not self.taken:
            self.taken = now
            self.batch.timed.append(self)

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return sum(client.in_flight for client in self.clients)

    def cells(self) -> Iterator[tuple[int, int, Cell]]:
        """Those that have counted anything: operation, size class, cell."""
        self._settle()
        for number, cell in enumerate(self._cells):
            if cell is not None:
                yield *divmod(number, _SIZES), cell

    def _settle(self) -> None:
        """Bring what batches have noted into the cells."""
        driven, self.driven_tally = self.driven_tally, defaultdict(int)
        for (operation, length, status, *durations), count in driven.items():
            times = list(map(int, durations))
            self.cell(operation, length).count_driven(length, times, count, failed=status != 0)

    def cell(self, operation: int, length: int) -> Cell:
        """Where requests of an operation and a length (bytes) are counted."""
        number = operation * len(SIZES) + SIZE_OF[(length - 1).bit_length()]
        cell = self._cells[number]
        if cell is None:
            cell = self._cells[number] = Cell()
        return cell

    def count_moved(self, seconds: float | None = None) -> bool:
        """Requests whose content went past the driver, of this batch and those before it.

        Args:
            seconds: from taken to answered; None: as long as the last that was looked at.

        Returns:
            Whether there were any.
        """
        if seconds is not None:
            self._duration = int(seconds * MICROSECONDS)
        found = False
        for operation, lengths in ((READ, self.reads), (WRITE, self.writes)):
            if lengths:
                self._count_moved(operation, lengths)
                lengths.clear()
                found = True
        return found

    def _count_moved(self, operation: int, lengths: list[int]) -> None:
        length, count = lengths[0], len(lengths)
        if count == 1 or lengths.count(length) == count:
            self.cell(operation, length).count_moved(length, self._duration, count)
            return
        for length, count in Counter(lengths).items():
            self.cell(operation, length).count_moved(length, self._duration, count)

    def count_told(self, operation: int, length: int, seconds: float, *, failed: bool) -> None:
        """A request that neither went to a driver nor past it: it was refused, say.

        Args:
            operation: its number.
            length: bytes.
            seconds: from taken to answered.
            failed: the answer was an error.
        """
        duration = int(seconds * MICROSECONDS)
        self.cell(operation, length).count_told(length, duration, failed=failed)


def _none() -> int:
    return 0


NO_BATCH: Final = Batch()
"""For what has no meter."""
