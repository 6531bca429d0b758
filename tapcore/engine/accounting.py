"""Answers of drivers, counted until every sector of a request has one.

The rules are blktap's: a driver answers every sector exactly once, in as many pieces as it likes;
sectors that an image does not hold are sent to its parent; one request gets one answer.
"""

from __future__ import annotations

import errno
import logging

from tapcore.buffers import POOL, fill_zeroes
from tapcore.constants import BLK_NOT_ALLOCATED, SECTOR_SHIFT
from tapcore.engine.dispatch import Dispatcher
from tapcore.engine.ordering import WriteOrder
from tapcore.engine.overdue import PastDrivers
from tapcore.engine.requests import (
    FLUSH,
    OP_NAMES,
    READ,
    ZERO,
    CopyingRead,
    Layer,
    Piece,
    Request,
    Segment,
)
from tapcore.engine.zerofill import ZeroFill
from tapcore.interface.models import DiskDriver
from tapcore.interface.options import DiskId

log = logging.getLogger(__name__)


class Accounts:
    """The sectors of a disk's requests that are not answered yet.

    Args:
        image: of the disk, for messages.
        layers: the images, child first.

    Attributes:
        dispatcher: hands segments to the drivers; their answers come back here.
        order: which writes must wait for which.
        in_flight: requests taken and not finished; parts of others count too.
        past_drivers: groups of them that no driver has: see `DirectLane`.
        copy_on_read: reads of the child that are to be copied note what came from below.
    """

    __slots__ = (
        "_copies",
        "_image",
        "_leaf",
        "copy_on_read",
        "dispatcher",
        "in_flight",
        "order",
        "past_drivers",
    )

    def __init__(self, image: DiskId, layers: list[Layer]) -> None:
        self._image = image
        self._leaf = layers[0]
        self.dispatcher = Dispatcher(layers, self)
        self.order = WriteOrder()
        self.in_flight = 0
        self.past_drivers: set[PastDrivers] = set()
        self.copy_on_read = self._copies = False

    def enable_copy_on_read(self) -> None:
        """Of a child that can be written; of others it means nothing."""
        self._copies = True
        self.copy_on_read = self._leaf.next is not None and not self._leaf.dd.read_only

    def follow(self, layers: list[Layer]) -> None:
        """Other images take the place of these, which have nothing in hand."""
        self._leaf = layers[0]
        self.dispatcher.follow(layers)
        if self._copies:
            self.enable_copy_on_read()

    # ---- parts of other requests ------------------------------------------------------------

    def submit_internal(self, req: Request) -> None:
        """A part of a request that holds its range: whole units, and exempt from the order."""
        self.in_flight += 1
        self.dispatcher.issue(req)

    def read_layer(self, layer: Layer, req: Request) -> None:
        """A READ of whole units of one image of the chain, part of another request."""
        self.in_flight += 1
        req.layer = layer
        self.dispatcher.issue(req)

    def finish_internal(self, req: Request, status: int) -> None:
        """All parts of a request are finished."""
        req.status = req.status or status
        self.finish(req)

    # ---- answers ----------------------------------------------------------------------------

    def answered(
        self, dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, seg: Segment
    ) -> int:
        """The callback given to drivers: `td_callback_t`."""
        if res == 0:
            left = seg.pending - nb_sectors
            if left < seg.forwarded or nb_sectors <= 0:
                return self._broken_answer(dd, nb_sectors, seg)
            seg.pending = left
            if left:
                return 0
            if seg.up is None:
                self.finish(seg)  # type: ignore[arg-type]  # a segment without up is a request
                return 1
            return self._finish_part(seg)
        if nb_sectors <= 0 or not self._expected(seg, sector, nb_sectors):
            return self._broken_answer(dd, nb_sectors, seg)
        if res == BLK_NOT_ALLOCATED and seg.op == READ:
            return self.read_hole(seg, sector, nb_sectors)
        if res == -errno.EOPNOTSUPP and seg.op == ZERO:
            return self._write_zeroes(seg, sector, nb_sectors)
        return self.fail(seg, nb_sectors, -res if res < 0 else errno.EIO)

    def flushed(
        self, dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, seg: Segment
    ) -> int:
        """The same for a flush, whose sectors mean nothing."""
        return self.answered(dd, res, seg.sector, 1, id, seg)

    @staticmethod
    def _expected(seg: Segment, sector: int, nb_sectors: int) -> bool:
        if nb_sectors > seg.pending - seg.forwarded:
            return False
        return seg.op == FLUSH or (
            seg.sector <= sector and sector + nb_sectors <= seg.sector + seg.nb_sectors
        )

    def _broken_answer(self, dd: DiskDriver, nb_sectors: int, seg: Segment) -> int:
        """More sectors answered than asked for: the driver's fault, and the request fails."""
        log.error(
            "%s: the driver %s answered %d sectors of a %s that has %d to be answered",
            dd.name,
            dd.drv.disk_type,
            nb_sectors,
            OP_NAMES[seg.op],
            seg.pending - seg.forwarded,
        )
        rest = seg.pending - seg.forwarded
        return self.fail(seg, rest, errno.EIO) if rest > 0 else 0

    def fail(self, seg: Segment, nb_sectors: int, code: int) -> int:
        """Some of a segment's sectors have failed; the request keeps its first error.

        Returns:
            1 when that finished the request, else 0.
        """
        request = seg.root()
        if not request.status:
            request.status = -code
        seg.pending -= nb_sectors
        return 0 if seg.pending else self._finish_part(seg)

    def succeed(self, seg: Segment, sector: int, nb_sectors: int) -> int:
        """Some of a segment's sectors are there, without a driver's answer; returns as `fail`."""
        assert seg.layer is not None
        return self.answered(seg.layer.dd, 0, sector, nb_sectors, 0, seg)

    def _finish_part(self, seg: Segment) -> int:
        """A segment has no pending sectors: so have, perhaps, those that it is part of."""
        up = seg.up
        if up is not None and seg in self.order.writing:
            assert isinstance(seg, Piece)  # whole writes have nothing above them
            self.order.wrote(seg)
            seg.written()
        while up is not None:
            up.forwarded -= seg.nb_sectors
            up.pending -= seg.nb_sectors
            if up.pending:
                return 0
            seg, up = up, up.up
        assert isinstance(seg, Request)
        self.finish(seg)
        return 1

    def finish(self, req: Request) -> None:
        """A request that was taken has no pending sectors left: tell its owner."""
        self.dispatcher.progress = True
        op = req.op
        if op != READ:
            order = self.order
            if req in order.writing:
                order.wrote(req)
            if req.fua and op != FLUSH and not req.status:
                self._flush_after(req)
                return
        self.in_flight -= 1
        try:
            req.done(req)
        except Exception:  # its owner's fault, which must not cost others their answers
            log.exception("%s: the owner of a %s failed", self._image, OP_NAMES[op])

    def _flush_after(self, req: Request) -> None:
        """A write that must be on disk before its answer: flush, then finish."""

        def flushed(flush: Request) -> None:
            req.status = flush.status
            self.in_flight -= 1
            req.done(req)

        self.in_flight += 1
        self.flush(Request(FLUSH, 0, 0, None, flushed))

    def flush(self, req: Request) -> None:
        """Hand a FLUSH (already counted as in flight) to the child; it counts as one sector."""
        req.nb_sectors = req.pending = 1
        self.dispatcher.issue(req)

    # ---- holes and zeroes -------------------------------------------------------------------

    def read_hole(self, seg: Segment, sector: int, nb_sectors: int) -> int:
        """These sectors are not in this image: the parent has them, or they are zeroes."""
        layer = seg.layer
        assert layer is not None
        below = layer.next
        buf = seg.slice(sector, nb_sectors)
        held = 0 if below is None else max(min(below.dd.size - sector, nb_sectors), 0)
        if held < nb_sectors:
            fill_zeroes(buf[held << SECTOR_SHIFT :])
        if below is None or not held:
            return self.succeed(seg, sector, nb_sectors)
        if self.copy_on_read and layer is self._leaf:
            root = seg.root()
            if isinstance(root, CopyingRead):
                root.from_below.append((sector, held))
        seg.forwarded += held
        part = Segment(READ, sector, held, buf[: held << SECTOR_SHIFT], seg, below)
        finished = 0
        if held < nb_sectors:
            finished = self.succeed(seg, sector + held, nb_sectors - held)
        if (sector | held) & below.unit_mask:
            self._read_around(part, below)
        else:
            self.dispatcher.issue(part)
        return finished

    def _read_around(self, part: Segment, layer: Layer) -> None:
        """Read a part of a parent that is not whole units of it, through a buffer that is."""
        mask = layer.unit_mask
        start = part.sector & ~mask
        end = min((part.sector + part.nb_sectors + mask) & ~mask, layer.dd.size)
        size = (end - start) << SECTOR_SHIFT
        lease = POOL.take(size)
        view = lease[:size]

        def copy(inner: Request) -> None:
            if inner.status:
                self.fail(part, part.nb_sectors, -inner.status)
            else:
                assert part.buf is not None
                skip = (part.sector - start) << SECTOR_SHIFT
                part.buf[:] = view[skip : skip + len(part.buf)]
                self.succeed(part, part.sector, part.nb_sectors)
            POOL.give(lease)

        self.read_layer(layer, Request(READ, start << SECTOR_SHIFT, size, view, copy))

    def _write_zeroes(self, seg: Segment, sector: int, nb_sectors: int) -> int:
        """The driver has no quick way to zero these sectors."""
        if seg.root().fast:
            return self.fail(seg, nb_sectors, errno.EOPNOTSUPP)
        seg.forwarded += nb_sectors
        ZeroFill(self.dispatcher, seg, sector, nb_sectors).begin()
        return 0
