"""What the requests of one front end add to the counters of its disk."""

from __future__ import annotations

from time import monotonic
from typing import Final

from tapcore.engine import DISCARD, FLUSH, READ, WRITE
from tapcore.metrics.meter import Batch, Client, Meter
from tapcore.metrics.operations import OTHER
from tapcore.ring.wire import Op

_KINDS: Final[dict[int, int]] = {Op.READ: READ, Op.WRITE: WRITE, Op.DISCARD: DISCARD}


def counted_as(operation: int, length: int) -> int:
    """The meter's number of an operation: a barrier with content is a write, one without a flush.

    Args:
        operation: of the ring.
        length: bytes of content.
    """
    if operation in (Op.WRITE_BARRIER, Op.FLUSH_DISKCACHE):
        return WRITE if length else FLUSH
    return _KINDS.get(operation, OTHER)


class Counting:
    """Notes requests, and counts them when their answers are published.

    That is not the end of the loop's batch, so what is noted is a batch of its own. What the back
    end does for each turn it does without a call.

    Args:
        meter: of the disk.
        client: the front end.

    Attributes:
        batch: of the loop; it is not before its `next` that `begin` is to be called.
        reads: where the back end appends lengths of reads that went past the driver.
        writes: the same of writes.
        noted: there is something for `answered` to do.
    """

    __slots__ = ("_began", "_client", "_meter", "_noted", "batch", "noted", "reads", "writes")

    def __init__(self, meter: Meter, client: Client) -> None:
        self._meter = meter
        self._client = client
        self._noted = Batch()
        self._began = 0.0
        self.batch = meter.batch
        self.reads = meter.reads
        self.writes = meter.writes
        self.noted = False
        meter.arrived(client)

    # ---- requests ---------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Requests were taken (`time.monotonic`), and it is time to look how long that takes."""
        self._began = now
        self.noted = True

    def driven(self, operation: int, length: int, taken: float, queued: float, status: int) -> None:
        """The driver is done with a request, which is to be answered.

        Args:
            operation: of the ring.
            length: bytes.
            taken: when that was.
            queued: when it went to the driver, where that was not at once; else 0.0.
            status: 0 or -errno.
        """
        kind = counted_as(operation, length)
        self._noted.driven.append((self._meter, kind, length, taken, queued, status))
        self._noted.done = monotonic()
        self.noted = True

    def refused(self, operation: int, length: int, taken: float) -> None:
        """A request is answered with an error, and no driver hears of it; arguments as above."""
        kind = counted_as(operation, length)
        self._noted.told.append((self._meter, kind, length, taken, True))
        self.noted = True

    # ---- turns ------------------------------------------------------------------------------

    def answered(self) -> None:
        """Answers were published."""
        noted, shown, began = self._noted, self.batch, self._began
        self.noted = False
        noted.count()
        if began:
            self._meter.count_moved(noted.now - began)
            self._began = 0.0
        shown.now, shown.next, shown.armed = noted.now, noted.next, True

    def leave(self) -> None:
        """The front end has gone: what is in flight will not be answered."""
        if self.noted:
            self.answered()
        self._meter.left(self._client)
