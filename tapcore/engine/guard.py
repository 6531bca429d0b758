"""Writes to the ends of a disk that must go on looking like what it was opened as.

What a file is, is told by its first and last bytes. A write there holds the whole end that it
touches, so that no other can change it meanwhile; reads both ends, puts its own content into them,
and asks. Writes between the ends never come here.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Protocol

from tapcore.buffers import POOL, fill_zeroes
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.ordering import Hold
from tapcore.engine.parts import Parts
from tapcore.engine.requests import DISCARD, READ, ZERO, Request

log = logging.getLogger(__name__)


class Guard(Protocol):
    """Who is asked.

    Attributes:
        head: bytes at the disk's start that matter.
        tail: bytes at its end that matter.
    """

    @property
    def head(self) -> int: ...

    @property
    def tail(self) -> int: ...

    def reason(self, head: bytes, tail: bytes, size: int) -> str:
        """Why a disk must not become this; "" where it may.

        Args:
            head: its first bytes as they would be.
            tail: its last bytes as they would be.
            size: of the disk, bytes.
        """


class GuardedWrite:
    """A request that changes an end of the disk: hold it, read, ask, then write or refuse.

    Args:
        engine: of the disk.
        guard: who is asked.
        req: aligned or not, already counted as in flight.
        write: how to go on with the request that takes its place, while the range is held.
    """

    __slots__ = (
        "_ends",
        "_engine",
        "_guard",
        "_hold",
        "_leases",
        "_open",
        "_req",
        "_status",
        "_write",
    )

    def __init__(
        self,
        engine: Parts,
        guard: Guard,
        req: Request,
        write: Callable[[Request], object],
    ) -> None:
        self._engine = engine
        self._guard = guard
        self._req = req
        self._write = write
        self._hold: Hold | None = None
        self._ends = ends_of(engine, guard)
        self._leases: list[memoryview] = []
        self._open = 0
        self._status = 0

    def start(self) -> None:
        """Begin, now or when the range is free."""
        order = self._engine.order
        start, end = self._req.offset, self._req.offset + self._req.length
        for low, high in self._ends:
            if start < high and low < end:
                start, end = min(start, low), max(end, high)
        mask = self._engine.mask
        first = (start & ~mask) >> SECTOR_SHIFT
        last = min((end + mask) & ~mask, self._engine.size) >> SECTOR_SHIFT
        if not order.can_hold(first, last):
            order.wait(first, last, self.start)
            return
        self._hold = order.hold(first, last)
        self._read()

    def _read(self) -> None:
        self._leases = [POOL.take(high - low) for low, high in self._ends]
        self._open = len(self._ends)
        for (low, high), lease in zip(self._ends, tuple(self._leases), strict=True):
            view = lease[: high - low]
            self._engine.submit_internal(Request(READ, low, high - low, view, self._end_read))

    def _end_read(self, inner: Request) -> None:
        self._status = self._status or inner.status
        self._open -= 1
        if self._open:
            return
        reason = "" if self._status else self._ask()
        for lease in self._leases:
            POOL.give(lease)
        if reason:
            log.warning("%s: write refused: %s", self._engine.disk.image, reason)
            self._status = -errno.EPERM
        if self._status:
            self._finish(self._status)
            return
        req = self._req
        part = Request(req.op, req.offset, req.length, req.buf, self._written)
        part.may_unmap, part.fast = req.may_unmap, req.fast
        self._write(part)

    def _ask(self) -> str:
        """What the ends would be."""
        views = []
        for (low, high), lease in zip(self._ends, self._leases, strict=True):
            view = lease[: high - low]
            self._overlay(view, low)
            views.append(view)
        head, tail = views
        size = self._engine.size
        return self._guard.reason(
            bytes(head[: self._guard.head]), bytes(tail[-min(self._guard.tail, size) :]), size
        )

    def _overlay(self, view: memoryview, low: int) -> None:
        req = self._req
        start, end = req.offset, req.offset + req.length
        if req.op == DISCARD:  # of whole units alone
            mask = self._engine.mask
            start, end = (start + mask) & ~mask, end & ~mask
        start, end = max(start, low), min(end, low + len(view))
        if start >= end:
            return
        target = view[start - low : end - low]
        if req.op in (ZERO, DISCARD):
            fill_zeroes(target)
            return
        assert req.buf is not None
        target[:] = req.buf[start - req.offset : end - req.offset]

    def _written(self, part: Request) -> None:
        self._finish(part.status)

    def _finish(self, status: int) -> None:
        assert self._hold is not None
        self._engine.order.release(self._hold)
        self._engine.finish_internal(self._req, status)


def ends_of(engine: Parts, guard: Guard) -> tuple[tuple[int, int], tuple[int, int]]:
    """The head and the tail of a disk that matter, [start, end) in bytes, in whole units."""
    mask, size = engine.mask, engine.size
    head = min((guard.head + mask) & ~mask, size)
    tail = max(size - guard.tail, 0) & ~mask
    return (0, head), (tail, size)
