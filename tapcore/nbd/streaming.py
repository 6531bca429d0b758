"""A long write that is begun while its data still arrives: the memory stays warm, and little."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tapcore.buffers import POOL
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import Engine, Request

PIECE: Final = 256 << 10
_WORTH_WRITING: Final = 64 << 10
_PAGE: Final = 4096


class StreamedWrite:
    """One write, taken piece by piece where the engine allows it, else as a whole.

    Its memory is of two kinds. What waits for the client is one buffer: a piece, or the whole. What
    waits for the disk are pieces handed over; each comes back by itself, however much of the write
    is still to come, so that a client may always be kept waiting until some have.

    Args:
        engine: of the disk.
        req: the request, without a buffer.
        account: told of memory taken (bytes) and given back (negative).
    """

    __slots__ = (
        "_account",
        "_engine",
        "_fill",
        "_left",
        "_mask",
        "_piece",
        "_req",
        "_sector",
        "_size",
        "_whole",
    )

    def __init__(self, engine: Engine, req: Request, account: Callable[[int], None]) -> None:
        self._engine = engine
        self._req = req
        self._account = account
        self._left = req.length
        self._sector = req.sector
        self._fill = 0
        # A page is not cut, since the half of one that is not in the page cache would have to be
        # read first; nor a cluster, of which the halves would be written in two steps.
        cluster = engine.cluster_size
        self._mask = max(engine.mask + 1, _PAGE, cluster if cluster <= _WORTH_WRITING else 0) - 1
        self._whole = not engine.begin_write(req)
        self._piece, self._size = self._take()

    def _take(self) -> tuple[memoryview, int]:
        size = self._left if self._whole else min(PIECE, self._left)
        lease = POOL.take(size)
        self._account(len(lease))
        return lease, size

    def _give_back(self, lease: memoryview) -> None:
        POOL.give(lease)
        self._account(-len(lease))

    def begin(self, data: memoryview) -> None:
        """The part that had arrived with the header; shorter than the whole."""
        at = 0
        while at < len(data):
            space = self.space()
            count = min(len(space), len(data) - at)
            space[:count] = data[at : at + count]
            at += count
            self.received(count)

    def space(self) -> memoryview:
        """Where the next bytes go; never empty before the end."""
        return self._piece[self._fill : self._size]

    def received(self, count: int) -> bool:
        """`count` bytes have come into `space()`; returns True at the end of the data."""
        self._fill += count
        if self._whole:
            return self._fill == self._size and self._submit_whole()
        if self._fill == self._size:
            return self._write(self._size)
        if self._fill >= _WORTH_WRITING:
            # the client sends on while this is being written
            start = self._sector << SECTOR_SHIFT
            self._write(((start + self._fill) & ~self._mask) - start)
        return False

    def _submit_whole(self) -> bool:
        req, lease, done = self._req, self._piece, self._req.done

        def finished(request: Request) -> None:
            self._give_back(lease)
            done(request)

        req.done = finished
        req.buf = lease[: self._size]
        self._engine.submit(req)
        return True

    def _write(self, size: int) -> bool:
        """Hand the first `size` bytes of the piece over; returns True at the end of the data."""
        self._left -= size
        old, rest = self._piece, self._fill - size
        last = not self._left
        piece = self._engine.write_piece(self._req, self._sector, old[:size])
        if piece.pending:
            piece.written = partial(self._give_back, old)
        elif last:
            self._give_back(old)
        if last:
            return True
        self._sector += size >> SECTOR_SHIFT
        if piece.pending:
            self._piece, self._size = self._take()
        else:  # written already: the same memory, which is warm, serves again
            self._size = min(PIECE, self._left)
        self._fill = rest
        if rest:
            self._piece[:rest] = old[size : size + rest]
        return False

    def abort(self) -> bool:
        """The client has gone in the middle.

        Returns:
            Whether the request's `done` is called all the same, for the part that was taken.
        """
        self._give_back(self._piece)
        if not self._whole:
            self._engine.cut_short(self._req, self._left >> SECTOR_SHIFT)
        return not self._whole
