"""The requests of one client that are not answered yet, and the memory that they take."""

from __future__ import annotations

import errno
from typing import Final

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import MappedExtent, Request
from tapcore.errors import printable
from tapcore.interface.models import TdState
from tapcore.metrics.meter import Meter
from tapcore.nbd import constants as nbd
from tapcore.nbd.receive import Chunk
from tapcore.nbd.replies import Replies

_MOST_JOINED: Final = 128

MAX_HELD: Final = 32 << 20
"""Bytes of memory (buffers in use) and of replies waiting that one connection may have; beyond
it, nothing more is read from the client."""

MAX_IN_FLIGHT: Final = 1024
"""Requests of one connection under way."""

_TEXTS: Final = {
    errno.EINVAL: "the request is not possible on this export",
    errno.ENOSPC: "there is no space left",
    errno.EPERM: "the write was refused, as the server's log tells",
    errno.EROFS: "the export is read-only",
    errno.EIO: "input/output error",
    errno.EOPNOTSUPP: "not supported without writing zeroes",
}


_MOST_REASON: Final = 500


class NbdRequest(Request):
    """A request of the protocol.

    Attributes:
        cookie: the client's name for it.
        taken: when that was, where the disk has a meter (`time.monotonic`).
        lease: the pool's buffer of a read.
        chunk: the receive buffer that holds a write's content.
        parts: the runs of a read that has holes.
    """

    __slots__ = ("chunk", "cookie", "lease", "parts", "taken")

    cookie: int
    taken: float
    lease: memoryview | None
    chunk: Chunk | None
    parts: list[MappedExtent] | None


class Outstanding:
    """What one client is owed.

    Args:
        replies: where the answers go.
        disk: whose requests they are.
        meter: counts them; None: nobody does.

    Attributes:
        replies: as given.
        in_flight: requests taken and not answered.
        held: bytes of buffers in use.
        budget: what is left of the memory of all clients.
        gone: the client takes no answer any more.
        meter: as given.
        taken: when requests were taken last, where there is a meter.
    """

    __slots__ = ("_disk", "budget", "gone", "held", "in_flight", "meter", "replies", "taken")

    def __init__(self, replies: Replies, disk: TdState, meter: Meter | None = None) -> None:
        self.replies = replies
        self._disk = disk
        self.in_flight = 0
        self.held = 0
        self.budget = replies.budget
        self.gone = False
        self.meter = meter
        self.taken = 0.0
        if meter is not None:
            meter.arrived(self)

    @property
    def may_join(self) -> int:
        """So many requests that follow each other may be one for the engine."""
        return min(_MOST_JOINED, MAX_IN_FLIGHT - self.in_flight)

    # ---- for the meter ----------------------------------------------------------------------

    def time_batch(self, now: float) -> None:
        """It is time to look how long a batch takes, of which requests were taken `now`."""
        if self.meter is not None:
            self.meter.time_batch(now)

    def driven(self, req: NbdRequest) -> None:
        """The drivers are done with a request."""
        meter = self.meter
        if meter is not None:
            meter.driven.append((meter, req.op, req.length, req.taken, req.queued, req.status))

    def told(self, operation: int, length: int, *, failed: bool = False) -> None:
        """A request is answered for which no driver was asked."""
        meter = self.meter
        if meter is not None:
            meter.told.append((meter, operation, length, self.taken, failed))

    def given_up(self) -> None:
        """A request in flight will not be answered."""
        self.in_flight -= 1
        if self.meter is not None:
            self.meter.gone += 1

    def leave(self) -> None:
        """The client has gone: what is in flight will not be answered."""
        meter, self.meter = self.meter, None
        if meter is not None:
            meter.left(self)

    # ---- answers ----------------------------------------------------------------------------

    def finished(self, req: NbdRequest) -> None:
        """A request that returns no data, and holds no buffer, is over."""
        self.in_flight -= 1
        self.driven(req)
        if req.status:
            self.failed(req)
        else:
            self.replies.done(req.cookie, req.offset)

    def failed(self, req: NbdRequest) -> None:
        """The engine could not do what was asked for."""
        if not self.gone:
            self.refuse_failed(req, req.cookie, req.offset)

    def refuse_failed(self, req: NbdRequest, cookie: int, asked: int) -> None:
        """Tell the client why the engine could not do it.

        Args:
            req: what has failed.
            cookie: of the client's request, of which it is perhaps only a part.
            asked: the offset of that, bytes.
        """
        offset, end = req.offset, req.offset + req.length
        past = end > self._size
        reason = self.past_end(offset, req.length) if past else self._noted(offset, end)
        self.refuse(cookie, asked, -req.status, reason)

    def _noted(self, offset: int, end: int) -> str:
        """What a driver noted of damage in a range (bytes): the last of it; else empty."""
        first, last = offset >> SECTOR_SHIFT, ((end - 1) >> SECTOR_SHIFT) + 1
        noted = self._disk.losses.among(first, last, since=0)
        return noted[-1].reason if noted else ""

    @property
    def _size(self) -> int:
        return self._disk.disks.size << SECTOR_SHIFT

    def past_end(self, offset: int, length: int) -> str:
        """For a client that asks for what the disk does not have: in bytes."""
        return f"{length} bytes at {offset} end behind the disk, which has {self._size}"

    def refuse_at_once(
        self, operation: int, length: int, cookie: int, offset: int, code: int, reason: str
    ) -> None:
        """The same of a request that no driver hears of: `operation` is its number for the meter,
        `length` in bytes.
        """
        self.told(operation, length, failed=True)
        self.refuse(cookie, offset, code, reason)

    def refuse(self, cookie: int, offset: int, code: int, reason: str = "") -> None:
        """Answer with an error.

        Args:
            cookie: the request's.
            offset: the request's, bytes.
            code: a positive errno.
            reason: one line for a person; what the errno means, where it is not known.
        """
        text = printable(reason, limit=_MOST_REASON) if reason else _TEXTS.get(code, "")
        self.replies.error(cookie, offset, nbd.nbd_errno(code), text)
