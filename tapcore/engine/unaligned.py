"""Requests that are not whole units of the child: read around them, or read, modify and write.

A unit is the child's `sector_size`, at least 512 bytes. The edges of a request are units of which
it changes a part; what lies between them goes to the driver as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from tapcore.buffers import POOL, fill_zeroes
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.ordering import Hold
from tapcore.engine.parts import Parts
from tapcore.engine.requests import DISCARD, READ, WRITE, ZERO, Request


def submit_unaligned(engine: Parts, req: Request, *, held: bool = False) -> None:
    """Take a request (already counted as in flight) that does not consist of whole units.

    Args:
        engine: of the disk.
        req: the request.
        held: its range is held already, and is not given back here.
    """
    if req.op == READ:
        _read(engine, req)
    elif req.op == DISCARD:
        _discard(engine, req)
    else:
        write = UnalignedWrite(engine, req)
        if held:
            write.start_held()
        else:
            write.start()


def _bounds(engine: Parts, req: Request) -> tuple[int, int]:
    """The request's range in bytes, widened to whole units inside the disk."""
    mask = engine.mask
    start = req.offset & ~mask
    end = min((req.offset + req.length + mask) & ~mask, engine.size)
    return start, end


def _read(engine: Parts, req: Request) -> None:
    start, end = _bounds(engine, req)
    lease = POOL.take(end - start)
    view = lease[: end - start]

    def copy(inner: Request) -> None:
        if not inner.status:
            skip = req.offset - start
            assert req.buf is not None
            req.buf[:] = view[skip : skip + req.length]
        POOL.give(lease)
        engine.finish_internal(req, inner.status)

    engine.submit_internal(Request(READ, start, end - start, view, copy))


def _discard(engine: Parts, req: Request) -> None:
    """Only whole units can be discarded; the rest keeps its content, which is allowed."""
    mask = engine.mask
    start = (req.offset + mask) & ~mask
    end = (req.offset + req.length) & ~mask
    if start >= end:
        engine.finish_internal(req, 0)
        return

    def discarded(inner: Request) -> None:
        engine.finish_internal(req, inner.status)

    engine.submit_internal(Request(DISCARD, start, end - start, None, discarded))


class _Edge(NamedTuple):
    """A unit that is changed in part.

    Attributes:
        start: bytes from the start of the disk.
        lease: the pool's buffer.
        view: the unit's content.
    """

    start: int
    lease: memoryview
    view: memoryview


class UnalignedWrite:
    """A WRITE or ZERO with edges: hold the range, read the edges, merge, write, let go.

    Args:
        engine: of the disk.
        req: the request, already counted as in flight.
    """

    __slots__ = ("_edges", "_end", "_engine", "_hold", "_open", "_req", "_start", "_status")

    def __init__(self, engine: Parts, req: Request) -> None:
        self._engine = engine
        self._req = req
        self._start, self._end = _bounds(engine, req)
        self._hold: Hold | None = None
        self._edges: list[_Edge] = []
        self._open = 0
        self._status = 0

    def start(self) -> None:
        """Begin, now or when the range is free."""
        order = self._engine.order
        first, last = self._start >> SECTOR_SHIFT, self._end >> SECTOR_SHIFT
        if not order.can_hold(first, last):
            order.wait(first, last, self.start)
            return
        self._hold = order.hold(first, last)
        self.start_held()

    def start_held(self) -> None:
        """Begin, in a range that is held."""
        unit = self._engine.mask + 1
        first = self._start
        last = (self._end - 1) & ~self._engine.mask
        starts = {first} if self._req.offset != first else set()
        if self._req.offset + self._req.length != self._end:
            starts.add(last)
        self._open = len(starts)
        for start in sorted(starts):
            size = min(unit, self._engine.size - start)
            lease = POOL.take(size)
            edge = _Edge(start, lease, lease[:size])
            self._edges.append(edge)
            self._engine.submit_internal(Request(READ, start, size, edge.view, self._edge_read))

    def _edge_read(self, inner: Request) -> None:
        self._status = self._status or inner.status
        self._open -= 1
        if self._open:
            return
        if self._status:
            self._finish()
            return
        self._write()

    def _write(self) -> None:
        """All edges are here: merge the new content in, and write everything."""
        parts = [self._merge(edge) for edge in self._edges]
        start, end = self._start, self._end
        for edge in self._edges:
            if edge.start == start:
                start += len(edge.view)
            else:
                end = edge.start
        if start < end:
            parts.append(self._middle(start, end))
        self._open = len(parts)
        for part in parts:
            self._engine.submit_internal(part)

    def _merge(self, edge: _Edge) -> Request:
        req = self._req
        lo = max(req.offset, edge.start)
        hi = min(req.offset + req.length, edge.start + len(edge.view))
        target = edge.view[lo - edge.start : hi - edge.start]
        if req.op == ZERO:
            fill_zeroes(target)
        else:
            assert req.buf is not None
            target[:] = req.buf[lo - req.offset : hi - req.offset]
        return Request(WRITE, edge.start, len(edge.view), edge.view, self._part_written)

    def _middle(self, start: int, end: int) -> Request:
        req = self._req
        buf = None if req.buf is None else req.buf[start - req.offset : end - req.offset]
        part = Request(req.op, start, end - start, buf, self._part_written)
        part.may_unmap, part.fast = req.may_unmap, req.fast
        return part

    def _part_written(self, inner: Request) -> None:
        self._status = self._status or inner.status
        self._open -= 1
        if not self._open:
            self._finish()

    def _finish(self) -> None:
        for edge in self._edges:
            POOL.give(edge.lease)
        if self._hold is not None:
            self._engine.order.release(self._hold)
        self._engine.finish_internal(self._req, self._status)
