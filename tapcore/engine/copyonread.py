"""Copy on read: what a read finds in a parent is written into the child, once it has been read.

The range is held while this goes on, so that a client's write can never be overwritten by the
older content that came from below.
"""

from __future__ import annotations

import logging

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.ordering import Hold
from tapcore.engine.parts import Parts
from tapcore.engine.requests import READ, WRITE, CopyingRead, Request

log = logging.getLogger(__name__)


def submit_copy_on_read(engine: Parts, req: Request) -> None:
    """Take an aligned READ (already counted as in flight) of a disk with copy on read."""
    CopyOnRead(engine, req).start()


class CopyOnRead:
    """One read and the copies that it leads to."""

    __slots__ = ("_engine", "_hold", "_open", "_req")

    def __init__(self, engine: Parts, req: Request) -> None:
        self._engine = engine
        self._req = req
        self._hold: Hold | None = None
        self._open = 0

    def start(self) -> None:
        """Begin, now or when the range is free."""
        req, order = self._req, self._engine.order
        end = req.sector + req.nb_sectors
        if not order.can_hold(req.sector, end):
            order.wait(req.sector, end, self.start)
            return
        self._hold = order.hold(req.sector, end)
        inner = CopyingRead(READ, req.offset, req.length, req.buf, self._read)
        self._engine.submit_internal(inner)

    def _read(self, inner: CopyingRead) -> None:
        if inner.status or not inner.from_below:
            self._finish(inner.status)
            return
        copies = self._whole_units(inner)
        self._open = len(copies)
        for sector, nb_sectors in copies:
            self._engine.submit_internal(
                Request(
                    WRITE,
                    sector << SECTOR_SHIFT,
                    nb_sectors << SECTOR_SHIFT,
                    inner.slice(sector, nb_sectors),
                    self._copied,
                )
            )

    def _whole_units(self, inner: CopyingRead) -> list[tuple[int, int]]:
        """What came from below, widened to whole units of the child, neighbours as one."""
        mask = self._engine.mask >> SECTOR_SHIFT
        last = inner.sector + inner.nb_sectors  # where the disk ends, its last unit may be cut
        copies: list[tuple[int, int]] = []
        for sector, nb_sectors in sorted(inner.from_below):
            start = sector & ~mask
            end = min((sector + nb_sectors + mask) & ~mask, last)
            if copies and start <= sum(copies[-1]):
                start = copies.pop()[0]
            copies.append((start, end - start))
        return copies

    def _copied(self, write: Request) -> None:
        if write.status:  # the read itself has succeeded: the copy is only not made
            log.warning("copy on read failed with errno %d", -write.status)
        self._open -= 1
        if not self._open:
            self._finish(0)

    def _finish(self, status: int) -> None:
        assert self._hold is not None
        self._engine.order.release(self._hold)
        self._engine.finish_internal(self._req, status)
