"""Writes that come in pieces: one request, of which the content is written as a client sends it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.requests import WRITE, Layer, Piece, Request

if TYPE_CHECKING:
    from tapcore.engine.accounting import Accounts
    from tapcore.engine.dispatch import Dispatcher
    from tapcore.engine.guard import Guard
    from tapcore.engine.ordering import WriteOrder
    from tapcore.interface.models import TdState


class PiecedWrites:
    """The part of an engine that takes them; the attributes are the engine's."""

    disk: TdState
    guard: Guard | None
    order: WriteOrder
    mask: int
    size: int
    read_only: bool
    _accounts: Accounts
    _dispatcher: Dispatcher
    _leaf: Layer
    _coming: set[Request]
    _changes: int
    _head_end: int
    _tail_start: int

    def _touches_end(self, req: Request) -> bool:
        """Whether it changes what the guard goes by."""
        return req.offset < self._head_end or req.offset + req.length > self._tail_start

    def begin_write(self, req: Request) -> bool:
        """Take an aligned WRITE whose content comes piece by piece through `write_piece`.

        Returns:
            False where it has to come as a whole after all (nothing was taken).
        """
        if (
            (req.offset | req.length) & self.mask
            or not 0 <= req.offset < req.offset + req.length <= self.size
            or self.read_only
            or self.order.strict
            or (self.guard is not None and self._touches_end(req))
        ):
            return False
        self._changes += 1
        self._accounts.in_flight += 1
        req.layer = self._leaf
        self._coming.add(req)
        return True

    def write_piece(self, req: Request, sector: int, buf: memoryview) -> Piece:
        """The next piece, whole sectors, of a request that `begin_write` took.

        It is answered whether or not any more of the request ever comes.

        Returns:
            The piece; `buf` is in use until it has no `pending` sectors. Who wants to be told of
            that sets its `written`.
        """
        piece = Piece(WRITE, sector, len(buf) >> SECTOR_SHIFT, buf, req, self._leaf)
        piece.written = _nothing
        req.forwarded += piece.nb_sectors
        end = sector + piece.nb_sectors
        if end == req.sector + req.nb_sectors:
            self._coming.discard(req)
        if end > self.disk.size:  # it was cut off while the client was sending
            self._accounts.fail(piece, piece.nb_sectors, errno.ENOSPC)
        else:
            self._start_piece(piece)
        return piece

    def pieces_written(self, req: Request, offset: int, length: int) -> None:
        """So much of such a request (bytes, whole sectors) was written in its place.

        By `Lane.write`, past this engine, which has looked each time whether that may be.
        """
        if offset + length == req.offset + req.length:
            self._coming.discard(req)
        self._accounts.succeed(req, offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT)

    def _start_piece(self, piece: Piece) -> None:
        # ordered piece by piece: a client that stops in the middle keeps nobody waiting
        start, end = piece.sector, piece.sector + piece.nb_sectors
        if self.order.strict and self.order.must_wait(start, end):
            self.order.wait(start, end, lambda: self._start_piece(piece))
            return
        self.order.writing.add(piece)
        self._dispatcher.issue(piece)

    def cut_short(self, req: Request, nb_sectors: int) -> None:
        """The rest of a request that `begin_write` took will never come (its client has gone)."""
        self._coming.discard(req)
        self._accounts.fail(req, nb_sectors, errno.ESHUTDOWN)


def _nothing() -> None:
    """Nobody wants to be told."""
