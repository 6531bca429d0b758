"""A long write that is begun while its data still arrives: the memory stays warm, and little."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from tapcore.buffers import POOL
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import Engine, Request

PIECE: Final = 256 << 10
"""Bytes that the engine gets at a time, at most."""
PLACED_PIECE: Final = 1 << 20
"""Bytes that are written to their place at a time, which is still warm memory. On ext4 each call
costs about as much as the copy of 64 KiB, since it goes through all the buffers of its folios."""
LaneWrite: TypeAlias = Callable[[int, memoryview], int | None]

_WORTH_WRITING: Final = 64 << 10
_PAGE: Final = 4096


class StreamedWrite:
    """One write, taken piece by piece where the engine allows it, else as a whole.

    Its memory is of two kinds. What waits for the client is one buffer: a piece, or the whole. What
    waits for the disk are pieces handed over; each comes back by itself, however much of the write
    is still to come, so that a client may always be kept waiting until some have.

    As long as a piece has its place (`Lane.write`) it is written there at once, and nothing is made
    of it that an engine would have to count.

    Args:
        engine: of the disk.
        req: the request, without a buffer.
        account: told of memory taken (bytes) and given back (negative).
        lane_write: writes a piece in its place, as `Lane.write`; None: that is not to be tried.

    Attributes:
        placed: bytes that went to their place, last of all, and that the engine was not told of.
    """

    __slots__ = (
        "_account",
        "_engine",
        "_fill",
        "_lane_write",
        "_least",
        "_left",
        "_mask",
        "_offset",
        "_piece",
        "_req",
        "_size",
        "_whole",
        "placed",
    )

    def __init__(
        self,
        engine: Engine,
        req: Request,
        account: Callable[[int], None],
        lane_write: LaneWrite | None = None,
    ) -> None:
        self._engine = engine
        self._req = req
        self._account = account
        self._left = req.length
        self._offset = req.offset
        self._fill = 0
        self.placed = 0
        self._whole = not engine.begin_write(req)
        self._lane_write = None if self._whole else lane_write
        # A page is not cut, since the half of one that is not in the page cache would have to be
        # read first; nor a cluster that may have no place, whose halves are written in two steps.
        cluster = engine.cluster_size if self._lane_write is None else 0
        self._mask = max(engine.mask + 1, _PAGE, cluster if cluster <= _WORTH_WRITING else 0) - 1
        self._piece, self._size = self._take()

    @property
    def length(self) -> int:
        """Bytes of the whole write."""
        return self._req.length

    def _take(self) -> tuple[memoryview, int]:
        lease = POOL.take(self._most())
        self._account(len(lease))
        return lease, self._expect(lease)

    def _most(self) -> int:
        """Bytes of the next piece, at most."""
        if self._whole:
            return self._left
        return min(PIECE if self._lane_write is None else PLACED_PIECE, self._left)

    def _expect(self, lease: memoryview) -> int:
        """So much of the next piece goes into memory; something becomes of it from `_least` on."""
        size = min(self._most(), len(lease))
        early = self._lane_write is None and not self._whole
        self._least = min(_WORTH_WRITING, size) if early else size
        return size

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

    def waits(self, count: int) -> bool:
        """`count` bytes have come into `space()`: whether they are too few for anything.

        If they are not, `received` has to be told.
        """
        if self._fill + count < self._least:
            self._fill += count
            return True
        return False

    def received(self, count: int) -> bool:
        """`count` bytes have come into `space()`; returns True at the end of the data."""
        self._fill = fill = self._fill + count
        if fill == self._left:
            return self._submit_whole() if self._whole else self._write(fill)
        if fill < self._least:
            return False
        return self._write(self._up_to(fill))  # the client sends on while this is being written

    def _up_to(self, fill: int) -> int:
        """How much is written of so many bytes that have come."""
        return ((self._offset + fill) & ~self._mask) - self._offset

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
        if self._lane_write is not None:
            if self._to_its_place(self._piece, size):
                return self._go_on(size, self._piece)
            if size < self._left and (size := self._up_to(self._fill)) <= 0:
                return False  # less than what is not cut
        return self._by_engine(size)

    def _to_its_place(self, content: memoryview, size: int) -> int:
        """Write the first `size` bytes past the engine, if their place is known.

        Returns:
            `size`, or 0: that did not go. It is tried again only behind what went.
        """
        assert self._lane_write is not None
        if self._lane_write(self._offset, content[:size]) is None:
            if not self.placed:
                self._lane_write = None
                self._least = min(_WORTH_WRITING, self._size)
            self._tell_in_place()
            cluster = self._engine.cluster_size
            if cluster <= _WORTH_WRITING:
                self._mask |= cluster - 1
            return 0
        self._offset += size
        self._left -= size
        self.placed += size
        return size

    def _tell_in_place(self) -> None:
        """The engine counts what it has not seen."""
        done, self.placed = self.placed, 0
        if done:
            self._engine.pieces_written(self._req, self._offset - done, done)

    def _by_engine(self, size: int) -> bool:
        """The same as a piece of the request."""
        old = self._piece
        piece = self._engine.write_piece(self._req, self._offset >> SECTOR_SHIFT, old[:size])
        self._offset += size
        self._left -= size
        if piece.pending:
            piece.written = partial(self._give_back, old)
            if not self._left:
                return True
            self._piece, _ = self._take()
        return self._go_on(size, old)

    def _go_on(self, size: int, old: memoryview) -> bool:
        """So many bytes of a piece are handed over; returns True at the end of the data.

        What came behind them is the beginning of the next one, for which the same memory, which is
        warm, serves again where it is free.
        """
        piece, fill = self._piece, self._fill
        if not self._left:
            self._give_back(piece)
            self._tell_in_place()
            return True
        self._fill = rest = fill - size
        self._size = self._expect(piece)
        if rest:
            piece[:rest] = old[size:fill]
        return False

    def abort(self) -> bool:
        """The client has gone in the middle.

        Returns:
            Whether the request's `done` is called all the same, for the part that was taken.
        """
        self._give_back(self._piece)
        self._tell_in_place()
        if not self._whole:
            self._engine.cut_short(self._req, self._left >> SECTOR_SHIFT)
        return not self._whole
