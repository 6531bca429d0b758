"""A long write that is begun while its data still arrives: the memory stays warm, and little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tapcore.buffers import POOL
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import Engine, Request

if TYPE_CHECKING:
    from tapcore.nbd.transmission import Transmission

PIECE: Final = 256 << 10


class StreamedWrite:
    """One write, taken piece by piece where the engine allows it, else as a whole.

    Args:
        engine: of the disk.
        req: the request, without a buffer.
        owner: whose `held` counts the memory.
    """

    __slots__ = (
        "_engine",
        "_fill",
        "_leases",
        "_left",
        "_owner",
        "_piece",
        "_req",
        "_sector",
        "_size",
        "_whole",
    )

    def __init__(self, engine: Engine, req: Request, owner: Transmission) -> None:
        self._engine = engine
        self._req = req
        self._owner = owner
        self._left = req.length
        self._sector = req.sector
        self._leases: list[memoryview] = []
        self._fill = 0
        done = req.done

        def finished(request: Request) -> None:
            self._give_back()
            done(request)

        req.done = finished
        self._whole = not engine.begin_write(req)
        self._piece, self._size = self._take()

    def _take(self) -> tuple[memoryview, int]:
        size = self._left if self._whole else min(PIECE, self._left)
        lease = POOL.take(size)
        self._owner.held += len(lease)
        self._leases.append(lease)
        return lease, size

    def _give_back(self) -> None:
        for lease in self._leases:
            self._owner.held -= len(lease)
            POOL.give(lease)
        self._leases.clear()

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
        if self._fill < self._size:
            return False
        self._left -= self._size
        buf = self._piece[: self._size]
        if self._whole:
            self._req.buf = buf
            self._engine.submit(self._req)
            return True
        last = not self._left
        piece = self._engine.write_piece(self._req, self._sector, buf)
        if last:
            return True
        self._sector += self._size >> SECTOR_SHIFT
        self._fill = 0
        if piece.pending:
            self._piece, self._size = self._take()
        else:  # written already: the same memory serves again
            self._size = min(PIECE, self._left)
        return False

    def abort(self) -> None:
        """The client has gone in the middle."""
        if self._whole:
            self._give_back()
            self._owner.in_flight -= 1
        else:
            self._engine.cut_short(self._req, self._left >> SECTOR_SHIFT)
