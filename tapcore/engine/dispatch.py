"""Segments on their way: to the drivers, back with answers, on to parents, until all are counted.

The rules are blktap's: a driver answers every sector exactly once, in as many pieces as it likes;
sectors that an image does not hold are sent to its parent; one request gets one answer.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from time import monotonic
from typing import Final

from tapcore.buffers import POOL, ZEROES, fill_zeroes
from tapcore.constants import BLK_NOT_ALLOCATED, DEFAULT_SECTOR_SIZE, SECTOR_SHIFT
from tapcore.engine.ordering import WriteOrder
from tapcore.engine.requests import (
    DISCARD,
    FLUSH,
    OP_NAMES,
    READ,
    WRITE,
    WRITE_COMPRESSED,
    ZERO,
    CopyingRead,
    Layer,
    Piece,
    Request,
    Segment,
    layers_of,
)
from tapcore.errors import TapError, describe, errno_of
from tapcore.interface.damage import content_damaged
from tapcore.interface.models import DiskDriver, TdState

log = logging.getLogger(__name__)

MAX_SEGMENT_SECTORS: Final = (1 << 20) >> SECTOR_SHIFT
"""A driver is asked for at most this much at once (1 MiB); larger requests are split."""

BUSY_RETRY_SECONDS: Final = 0.002
"""When a driver is full and nothing of ours is under way, nothing but time can empty it."""


_HANDED_LIMIT: Final = 512


class Dispatcher:
    """The engine's lower half: what happens to a request once it may reach the drivers.

    Args:
        disk: with its chain open.

    Attributes:
        disk: as given.
        layers: the images, child first.
        order: which writes must wait for which.
        size: of the disk, in bytes.
        read_only: writes are refused.
        mask: the child's unit (bytes), less one; drivers get whole units.
        cluster_size: the child's unit of allocation (bytes).
        in_flight: requests taken and not finished.
    """

    def __init__(self, disk: TdState) -> None:
        assert disk.disks is not None
        self.disk = disk
        self.layers = layers_of(disk.disks)
        self.order = WriteOrder()
        self.in_flight = 0
        self._leaf = self.layers[0]
        self._dd = self._leaf.dd
        self._layer_of = {layer.dd: layer for layer in self.layers}
        self._busy = False  # some layer has parked segments
        self._retry_at = 0.0
        self._progress = False
        self._serial = 0
        self._copy_on_read = False
        self.refresh()

    def refresh(self) -> None:
        """Take over what the chain says of itself, after open and resize."""
        dd = self._dd
        self.disk.size, self.disk.sector_size = dd.size, dd.sector_size
        self.size = dd.size << SECTOR_SHIFT
        self.read_only = dd.read_only
        self.mask = max(dd.sector_size, DEFAULT_SECTOR_SIZE) - 1
        self.cluster_size = dd.cluster_size or self.mask + 1

    # ---- parts of other requests ------------------------------------------------------------

    def submit_internal(self, req: Request) -> None:
        """A part of a request that holds its range: whole units, and exempt from the order."""
        self.in_flight += 1
        self._to_leaf(req)

    def read_layer(self, layer: Layer, req: Request) -> None:
        """A READ of whole units of one image of the chain, part of another request."""
        self.in_flight += 1
        req.layer = layer
        self.issue(req)

    def finish_internal(self, req: Request, status: int) -> None:
        """All parts of a request are finished."""
        req.status = req.status or status
        self._finish(req)

    # ---- to the drivers ---------------------------------------------------------------------

    def _to_leaf(self, req: Request) -> None:
        req.layer = self._leaf
        if req.nb_sectors > MAX_SEGMENT_SECTORS and req.buf is not None:
            self._split(req)
            return
        self.issue(req)

    def _split(self, req: Request) -> None:
        at, end = req.sector, req.sector + req.nb_sectors
        most = MAX_SEGMENT_SECTORS
        if req.op == WRITE_COMPRESSED:  # of whole clusters, which may be larger
            cluster = self.cluster_size >> SECTOR_SHIFT
            most = max(most // cluster * cluster, cluster)
        req.forwarded = req.nb_sectors
        while at < end:
            count = min(most, end - at)
            self.issue(Segment(req.op, at, count, req.slice(at, count), req, self._leaf))
            at += count

    def issue(self, seg: Segment) -> None:
        """Hand a segment to its driver."""
        layer = seg.layer
        assert layer is not None
        if layer.parked:
            layer.parked.append(seg)  # behind those that were refused before
            return
        self._serial = serial = self._serial + 1
        op = seg.op
        dd = layer.dd
        try:
            if op == READ:
                res = layer.read(
                    dd, seg.sector, seg.nb_sectors, seg.buf, self._answered, serial, seg
                )
            elif op == WRITE:
                res = layer.write(
                    dd, seg.sector, seg.nb_sectors, seg.buf, self._answered, serial, seg
                )
            else:
                res = self._issue_other(layer, seg, serial)
        except Exception as exc:
            layer.dirty = True
            self._call_failed(layer, seg, exc)
            return
        if res == -errno.EBUSY and seg.pending == seg.nb_sectors and not seg.forwarded:
            self._park(layer, seg)
            return
        layer.dirty = True
        if res:
            if res > 0:
                dd.early += res
            else:
                self._returned_error(seg, -res)
                return
        if seg.pending:
            layer.batch.append(seg)

    def _issue_other(self, layer: Layer, seg: Segment, serial: int) -> int | None:
        dd, cb = layer.dd, self._answered
        if seg.op == FLUSH:
            res: int | None = layer.flush(dd, self._flushed, serial, seg)
        elif seg.op == DISCARD:
            res = layer.discard(dd, seg.sector, seg.nb_sectors, cb, serial, seg)
        elif seg.op == WRITE_COMPRESSED:
            res = layer.write_compressed(dd, seg.sector, seg.nb_sectors, seg.buf, cb, serial, seg)
        else:
            unmap = seg.root().may_unmap
            try:
                res = layer.zero(dd, seg.sector, seg.nb_sectors, unmap, cb, serial, seg)
            except (OSError, TapError) as exc:  # fallocate's own way of saying it
                if errno_of(exc) != errno.EOPNOTSUPP:
                    raise
                res = -errno.EOPNOTSUPP
            untouched = seg.pending == seg.nb_sectors and not seg.forwarded
            if res == -errno.EOPNOTSUPP and untouched:
                self._write_zeroes(seg, seg.sector, seg.nb_sectors)
                res = 0
        return res

    def _call_failed(self, layer: Layer, seg: Segment, exc: Exception) -> None:
        if isinstance(exc, TapError):
            content_damaged(layer.dd, seg.sector, seg.nb_sectors, exc.message)
        elif not isinstance(exc, OSError):
            log.exception("%s: %s failed", layer.dd.name, OP_NAMES[seg.op])
        self._returned_error(seg, errno_of(exc))

    def _returned_error(self, seg: Segment, code: int) -> None:
        """A queue call failed: what it did not answer, and did not forward, never will be."""
        unanswered = seg.pending - seg.forwarded
        if unanswered > 0:
            self.fail(seg, unanswered, code)

    def _park(self, layer: Layer, seg: Segment) -> None:
        layer.parked.append(seg)
        self._busy = True
        self._retry_at = monotonic() + BUSY_RETRY_SECONDS

    # ---- answers ----------------------------------------------------------------------------

    def _answered(
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
                self._finish(seg)  # type: ignore[arg-type]  # a segment without up is a request
                return 1
            return self._finish_part(seg)
        if nb_sectors <= 0 or not self._expected(seg, sector, nb_sectors):
            return self._broken_answer(dd, nb_sectors, seg)
        if res == BLK_NOT_ALLOCATED and seg.op == READ:
            return self._read_hole(seg, sector, nb_sectors)
        if res == -errno.EOPNOTSUPP and seg.op == ZERO:
            return self._write_zeroes(seg, sector, nb_sectors)
        return self.fail(seg, nb_sectors, -res if res < 0 else errno.EIO)

    def _flushed(
        self, dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, seg: Segment
    ) -> int:
        return self._answered(dd, res, seg.sector, 1, id, seg)

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
        return self._answered(seg.layer.dd, 0, sector, nb_sectors, 0, seg)

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
        self._finish(seg)
        return 1

    def _finish(self, req: Request) -> None:
        self._progress = True
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
            log.exception("%s: the owner of a %s failed", self.disk.image, OP_NAMES[op])

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
        self._to_leaf(req)

    # ---- holes and zeroes -------------------------------------------------------------------

    def _read_hole(self, seg: Segment, sector: int, nb_sectors: int) -> int:
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
        if self._copy_on_read and layer is self._leaf:
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
            self.issue(part)
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
        end = sector + nb_sectors
        while sector < end:
            count = min(MAX_SEGMENT_SECTORS, end - sector)
            content = ZEROES[: count << SECTOR_SHIFT]
            self.issue(Segment(WRITE, sector, count, content, seg, seg.layer))
            sector += count
        return 0

    # ---- turns of the loop ------------------------------------------------------------------

    def readable(self, dd: DiskDriver, sid: int) -> None:
        """`dd.io_fd[sid]` is readable."""
        self._progress = True  # there may be room again
        try:
            finished = dd.drv.td_do_callbacks(dd, sid)
        except (InterruptedError, BlockingIOError):
            return  # nothing is lost: the descriptor is still readable
        except Exception as exc:
            self._reaping_failed(self._layer_of[dd], exc)
            return
        if finished:
            dd.early += finished

    def _reaping_failed(self, layer: Layer, exc: Exception) -> None:
        """Who cannot say what has finished will not answer: all that it has in hand fails."""
        log.error("%s: the driver failed to reap: %s", layer.dd.name, describe(exc))
        handed, layer.handed = layer.handed, []
        for seg in handed:
            self._returned_error(seg, errno_of(exc))

    def turn(self) -> None:
        """End of a batch: try again what was refused, and submit until nothing is left to."""
        while True:
            if self._busy and (self._progress or monotonic() >= self._retry_at):
                self._retry_parked()
            self._progress = False
            again = False
            for layer in self.layers:
                if layer.dirty:
                    layer.dirty = False
                    self._submit_layer(layer)
                    again = True
            if not again:
                return

    def _retry_parked(self) -> None:
        """Of each image on its own: a child may be full with what waits for its parent."""
        for layer in self.layers:
            if not layer.parked:
                continue
            parked, layer.parked = layer.parked, deque()
            try:
                while parked:  # after the first that is refused again, `issue` only queues
                    self.issue(parked.popleft())
            finally:
                layer.parked.extend(parked)
        self._busy = any(layer.parked for layer in self.layers)

    def _submit_layer(self, layer: Layer) -> None:
        batch = layer.batch
        if batch:
            layer.batch = []
        try:
            finished = layer.submit(layer.dd)
        except Exception as exc:
            if isinstance(exc, TapError):
                log.error("%s: submit failed: %s", layer.dd.name, exc.message)
            elif not isinstance(exc, OSError):
                log.exception("%s: submit failed", layer.dd.name)
            for seg in batch:
                self._returned_error(seg, errno_of(exc))
            return
        if batch:
            self._remember(layer, batch)
        layer.dd.early = 0
        if finished:
            self._progress = True

    @staticmethod
    def _remember(layer: Layer, batch: list[Segment]) -> None:
        """Keep what was submitted; what has been answered since is forgotten from time to time."""
        layer.handed += batch
        if len(layer.handed) > _HANDED_LIMIT:
            layer.handed = [seg for seg in layer.handed if seg.pending]

    @property
    def timeout(self) -> float | None:
        """Seconds after which `turn` must be called even if nothing happens; None: for ever."""
        if not self._busy:
            return None
        return max(self._retry_at - monotonic(), 0.0)

    def poll_fds(self) -> list[tuple[int, DiskDriver, int]]:
        """What is to be polled: (descriptor, image, sid), of the whole chain."""
        return [
            (fd, layer.dd, sid)
            for layer in self.layers
            for sid, fd in enumerate(layer.dd.io_fd)
            if fd is not None
        ]
