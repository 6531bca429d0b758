"""What a child holds itself, copied into its parent while clients write into the child.

A piece is copied while its range is held, as that of any request that reads before it writes: no
write is under way there meanwhile, and those that come wait for a moment. What is written later is
marked again. So whatever has no mark is in the parent as it is in the child.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from tapcore.buffers import POOL
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import READ, WRITE, ZERO, Engine, Request
from tapcore.engine.ordering import Hold
from tapcore.errors import IOFailedError, LostContentError, TapError, open_error
from tapcore.interface.extent import Extent
from tapcore.interface.models import DiskDriver, TdCallback
from tapcore.live.dirtymap import DirtyMap

PIECE: Final = 1 << 20
"""Bytes that are copied while their range is held."""

LOOK: Final = 64 << 20
"""Bytes that are looked at for what the child holds; zeroes of so many are one piece."""

AT_ONCE: Final = 4
"""Pieces under way, and begun in one batch of the loop."""


class Folding:
    """The copying of one commit.

    Args:
        engine: of the disk that is served: child, parent, and so on.
        parent: of the parent alone, open for writing.

    Attributes:
        marks: what is still to be copied.
        copied: bytes of data that were written into the parent.
        under_way: pieces.
        passes: how often the end of the disk was reached.
        failure: what went wrong, if anything did; nothing is begun any more.
    """

    def __init__(self, engine: Engine, parent: Engine) -> None:
        self._engine = engine
        self._parent = parent
        self._leaf = engine.disk.disks
        self.marks = DirtyMap(engine.size)
        self.copied = 0
        self.under_way = 0
        self.passes = 0
        self.failure: TapError | None = None
        self._at = 0
        self._held: list[tuple[int, int, Hold]] = []
        self._given_up = False
        self._watch()

    # ---- writes of clients ------------------------------------------------------------------

    def _watch(self) -> None:
        """See each change of the child; none may go past the engine."""
        layer = self._engine.layers[0]
        layer.write = self._marking(layer.write)
        layer.write_compressed = self._marking(layer.write_compressed)
        layer.discard = self._marking(layer.discard)
        layer.zero = self._marking(layer.zero)
        self._engine.lane_writes = False
        self._engine.refresh()

    def _marking(self, queue: Callable[..., int]) -> Callable[..., int]:
        """A queue call, whose range is marked when it is made and when it is answered."""

        def mark(sector: int, nb_sectors: int) -> None:
            self.marks.mark(sector << SECTOR_SHIFT, (sector + nb_sectors) << SECTOR_SHIFT)

        def marked(dd: DiskDriver, sector: int, nb_sectors: int, *rest: Any) -> int:
            *content, cb, id, prv = rest

            def answered(
                dd: DiskDriver, res: int, first: int, count: int, id: int, prv: Any
            ) -> int:
                mark(sector, nb_sectors)
                return told(dd, res, first, count, id, prv)

            told: TdCallback = cb
            mark(sector, nb_sectors)
            return queue(dd, sector, nb_sectors, *content, answered, id, prv)

        return marked

    def stop_watching(self) -> None:
        """The engine is to follow another chain next."""
        self._engine.lane_writes = True

    # ---- pieces -----------------------------------------------------------------------------

    @property
    def can_go_on(self) -> bool:
        """Whether `go_on` would do something."""
        if self.failure is not None or self._held:
            return True
        return self.under_way < AT_ONCE and self.marks.count > 0

    @property
    def done(self) -> bool:
        """Whether parent and child hold the same, as far as is known; a write can change that."""
        return not self.marks.count and not self.under_way

    def go_on(self) -> None:
        """Begin some pieces."""
        self._copy_held()
        begun = 0
        while self.failure is None and self.under_way < AT_ONCE and begun < AT_ONCE:
            run = self.marks.next(self._at, LOOK)
            if run is None:
                if not self._at:
                    return
                self._at = 0
                self.passes += 1
                continue
            begun += 1
            self.under_way += 1
            self._at = run[1] // self.marks.unit * self.marks.unit
            self._take(*run)
            self._copy_held()

    def give_up(self) -> None:
        """Begin nothing more."""
        self._given_up = True
        held, self._held = self._held, []
        for _, _, hold in held:
            self._end(hold)

    def _take(self, start: int, end: int) -> None:
        order = self._engine.order
        first, stop = start >> SECTOR_SHIFT, end >> SECTOR_SHIFT
        if self._given_up:
            self.under_way -= 1
        elif order.can_hold(first, stop):
            self._held.append((start, end, order.hold(first, stop)))
        else:  # when it can, a driver is at work: it is not asked for anything then
            order.wait(first, stop, partial(self._take, start, end))

    def _copy_held(self) -> None:
        held, self._held = self._held, []
        for start, end, hold in held:
            try:
                self._copy(start, end, hold)
            except Exception as exc:  # whatever a damaged image makes a driver raise
                self.marks.mark(start, end)
                self._fail(open_error(exc, self._leaf.name))
                self._end(hold)

    def _copy(self, start: int, end: int, hold: Hold) -> None:
        """Of a range that is held, the first piece that the child has something of."""
        unit = self.marks.unit
        self.marks.clear(start, end)
        own = next(self._own(start, end), None)
        if own is None:
            self._end(hold)
            return
        first = max(own.sector << SECTOR_SHIFT, start) // unit * unit
        stop = first + max(PIECE, unit)
        if own.kind == "zero":
            stop = max(stop, (own.end << SECTOR_SHIFT) // unit * unit)
        stop = min(stop, end)
        if stop < end:
            self.marks.mark(stop, end)
            self._at = min(self._at, stop)
        runs = list(self._own(first, stop))  # read now: what waits changes them
        held = self._engine.order.hold(first >> SECTOR_SHIFT, stop >> SECTOR_SHIFT)
        self._engine.order.release(hold)
        _Piece(self, held, runs).begin()

    def _own(self, start: int, end: int) -> Iterator[Extent]:
        """What the child holds itself."""
        first, count = start >> SECTOR_SHIFT, (end - start) >> SECTOR_SHIFT
        for run in self._leaf.drv.td_extents(self._leaf, first, count):
            if run.missing:
                text = f"has lost content at {run.sector << SECTOR_SHIFT} of the disk"
                raise LostContentError(text, image=self._leaf.name)
            if run.kind != "unallocated":
                yield run

    def _fail(self, error: TapError) -> None:
        self.failure = self.failure or error

    def _end(self, hold: Hold) -> None:
        self.under_way -= 1
        self._engine.order.release(hold)


class _Piece:
    """Some runs of a child on their way into its parent, while their range is held."""

    __slots__ = ("_folding", "_hold", "_open", "_runs")

    def __init__(self, folding: Folding, hold: Hold, runs: list[Extent]) -> None:
        self._folding = folding
        self._hold = hold
        self._runs = runs
        self._open = 1

    def begin(self) -> None:
        for run in self._runs:
            at, length = run.sector << SECTOR_SHIFT, run.nb_sectors << SECTOR_SHIFT
            if run.kind == "zero":
                self._open += 1
                self._folding._parent.submit(Request(ZERO, at, length, None, self._written))
                continue
            for start in range(at, at + length, PIECE):
                self._open += 1
                self._read(start, min(PIECE, at + length - start))
        self._one_less()

    def _read(self, start: int, length: int) -> None:
        """Through whole units of the child; only what is the run's own is written."""
        engine = self._folding._engine
        low = start & ~engine.mask
        high = min((start + length + engine.mask) & ~engine.mask, engine.size)
        lease = POOL.take(high - low)

        def written(req: Request) -> None:
            POOL.give(lease)
            self._folding.copied += req.length
            self._written(req)

        def read(req: Request) -> None:
            if req.status:
                POOL.give(lease)
                self._written(req)
                return
            content = lease[start - low : start - low + length]
            self._folding._parent.submit(Request(WRITE, start, length, content, written))

        engine.submit_internal(Request(READ, low, high - low, lease[: high - low], read))

    def _written(self, req: Request) -> None:
        if req.status:
            what = "reading the child" if req.op == READ else "writing into the parent"
            text = f"{what} failed at {req.offset}: {os.strerror(-req.status)}"
            image = str(self._folding._parent.disk.image)
            self._folding._fail(IOFailedError(text, image=image, errno=-req.status or errno.EIO))
        self._one_less()

    def _one_less(self) -> None:
        self._open -= 1
        if not self._open:
            self._folding._end(self._hold)
