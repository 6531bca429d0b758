"""Segments on their way to the drivers of a chain: queued, tried again, submitted, reaped.

What a driver answers is not judged here: it goes to who counts (`accounting`).
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from time import monotonic
from typing import Final, Protocol

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.requests import (
    DISCARD,
    FLUSH,
    OP_NAMES,
    READ,
    WRITE,
    WRITE_COMPRESSED,
    Layer,
    Request,
    Segment,
    cluster_of,
)
from tapcore.errors import TapError, describe, errno_of
from tapcore.interface.damage import content_damaged
from tapcore.interface.distrust import show_where
from tapcore.interface.models import DiskDriver

log = logging.getLogger(__name__)

MAX_SEGMENT_SECTORS: Final = (1 << 20) >> SECTOR_SHIFT
"""A driver is asked for at most this much at once (1 MiB); larger requests are split."""

BUSY_RETRY_SECONDS: Final = 0.002
"""When a driver is full and nothing of ours is under way, nothing but time can empty it."""

_HANDED_LIMIT: Final = 512


class Answers(Protocol):
    """Who counts what the drivers answer."""

    def answered(
        self, dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, seg: Segment
    ) -> int:
        """The callback given to drivers: `td_callback_t`."""

    def flushed(
        self, dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, seg: Segment
    ) -> int:
        """The same for a flush, whose sectors mean nothing."""

    def fail(self, seg: Segment, nb_sectors: int, code: int) -> int:
        """Some of a segment's sectors will never be answered; `code` is a positive errno."""


class Fill(Protocol):
    """A long write that is issued piece by piece."""

    @property
    def waits(self) -> bool:
        """Whether something has to be answered before it can go on."""

    def go_on(self) -> bool:
        """Issue the next pieces; returns whether these were the last."""


class Dispatcher:
    """Hands segments to the drivers of a chain.

    Args:
        layers: the images, child first.
        answers: who is told what they answer.

    Attributes:
        busy: some driver was full, and what it has refused waits for its turn.
        fills: long writes that are not issued to their ends.
        layer_of: the layer of each image.
        progress: something has finished since the last turn, so that a driver that was full may
            have room.
        serial: segments handed to a driver so far, those that it refused among them.
    """

    __slots__ = (
        "_answered",
        "_fail",
        "_flushed",
        "_layers",
        "_leaf",
        "_retry_at",
        "_sharing",
        "busy",
        "fills",
        "layer_of",
        "progress",
        "serial",
    )

    def __init__(self, layers: list[Layer], answers: Answers) -> None:
        self._layers = layers
        self._leaf = layers[0]
        self.layer_of = {layer.dd: layer for layer in layers}
        self._answered = answers.answered
        self._flushed = answers.flushed
        self._fail = answers.fail
        self.busy = False
        self._retry_at = 0.0
        self._sharing = [self]
        self.fills: list[Fill] = []
        self.progress = False
        self.serial = 0

    def follow(self, layers: list[Layer]) -> None:
        """Other images take the place of these, which have nothing in hand."""
        self._layers = layers
        self._leaf = layers[0]
        self.layer_of = {layer.dd: layer for layer in layers}
        self.busy = False

    # ---- others that use the same images ----------------------------------------------------

    def share_with(self, other: Dispatcher) -> None:
        """The other has images of this one in its chain: of a failure of theirs it is told."""
        self._sharing.append(other)
        other._sharing = self._sharing

    def share_no_more(self, other: Dispatcher) -> None:
        """The other is done with them."""
        self._sharing.remove(other)
        other._sharing = [other]

    # ---- to the drivers ---------------------------------------------------------------------

    def _split(self, req: Segment) -> None:
        at, end = req.sector, req.sector + req.nb_sectors
        most = MAX_SEGMENT_SECTORS
        if req.op == WRITE_COMPRESSED:  # of whole clusters, which may be larger
            cluster = cluster_of(self._leaf.dd) >> SECTOR_SHIFT
            most = max(most // cluster * cluster, cluster)
        req.forwarded = req.nb_sectors
        while at < end:
            count = min(most, end - at)
            self.issue(Segment(req.op, at, count, req.slice(at, count), req, self._leaf))
            at += count

    def issue(self, seg: Segment) -> None:
        """Hand a segment to its driver: a whole request, which has none yet, to the child's.

        What is long goes there in parts.
        """
        layer = seg.layer
        if layer is None:
            layer = seg.layer = self._leaf
            if seg.nb_sectors > MAX_SEGMENT_SECTORS and seg.buf is not None:
                self._split(seg)
                return
        if layer.parked:
            layer.parked.append(seg)  # behind those that were refused before
            return
        self.serial = serial = self.serial + 1
        op, buf = seg.op, seg.buf
        dd = layer.dd
        try:
            if buf is None:
                res = self._issue_without_content(layer, seg, serial)
            elif op == READ:
                res = layer.read(dd, seg.sector, seg.nb_sectors, buf, self._answered, serial, seg)
            elif op == WRITE:
                res = layer.write(dd, seg.sector, seg.nb_sectors, buf, self._answered, serial, seg)
            else:
                write = layer.write_compressed
                res = write(dd, seg.sector, seg.nb_sectors, buf, self._answered, serial, seg)
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

    def _issue_without_content(self, layer: Layer, seg: Segment, serial: int) -> int:
        dd, cb = layer.dd, self._answered
        if seg.op == FLUSH:
            res = layer.flush(dd, self._flushed, serial, seg)
        elif seg.op == DISCARD:
            res = layer.discard(dd, seg.sector, seg.nb_sectors, cb, serial, seg)
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
                cb(dd, res, seg.sector, seg.nb_sectors, serial, seg)
                res = 0
        return res

    def _call_failed(self, layer: Layer, seg: Segment, exc: Exception) -> None:
        if isinstance(exc, TapError):
            show_where(exc)
            content_damaged(layer.dd, seg.sector, seg.nb_sectors, exc.message)
        elif not isinstance(exc, OSError):
            name, kind = layer.dd.name, layer.dd.drv.disk_type
            log.exception("%s: %s failed in the driver %s", name, OP_NAMES[seg.op], kind)
        self._returned_error(seg, errno_of(exc))

    def _returned_error(self, seg: Segment, code: int) -> None:
        """A queue call failed: what it did not answer, and did not forward, never will be."""
        unanswered = seg.pending - seg.forwarded
        if unanswered > 0:
            self._fail(seg, unanswered, code)

    def _park(self, layer: Layer, seg: Segment) -> None:
        layer.parked.append(seg)
        self.busy = True
        self._retry_at = monotonic() + BUSY_RETRY_SECONDS

    # ---- turns of the loop ------------------------------------------------------------------

    def readable(self, dd: DiskDriver, sid: int) -> None:
        """`dd.io_fd[sid]` is readable."""
        self.progress = True  # there may be room again
        try:
            finished = dd.drv.td_do_callbacks(dd, sid)
        except (InterruptedError, BlockingIOError):
            return  # nothing is lost: the descriptor is still readable
        except Exception as exc:
            kind = dd.drv.disk_type
            log.error("%s: the driver %s failed to reap: %s", dd.name, kind, describe(exc))
            show_where(exc)
            for each in self._sharing:
                if dd in each.layer_of:
                    each._reaping_failed(each.layer_of[dd], exc)
            return
        if finished:
            dd.early += finished

    def _reaping_failed(self, layer: Layer, exc: Exception) -> None:
        """Who cannot say what has finished will not answer: all that it has in hand fails."""
        handed, layer.handed = layer.handed, []
        for seg in handed:
            self._returned_error(seg, errno_of(exc))

    def turn(self) -> None:
        """End of a batch: try again what was refused, and submit until nothing is left to."""
        if self.fills:
            self._go_on_filling()
        while True:
            if self.busy and (self.progress or monotonic() >= self._retry_at):
                self._retry_parked()
            self.progress = False
            again = False
            for layer in self._layers:
                if layer.dirty:
                    layer.dirty = False
                    self._submit_layer(layer)
                    again = True
            if not again:
                return

    def _go_on_filling(self) -> None:
        """One of them, as far as one turn goes; others get theirs after it."""
        fill = self.fills.pop(0)
        if not fill.go_on():
            self.fills.append(fill)

    def _retry_parked(self) -> None:
        """Of each image on its own: a child may be full with what waits for its parent."""
        now = monotonic()
        for layer in self._layers:
            if not layer.parked:
                continue
            parked, layer.parked = layer.parked, deque()
            try:
                while parked:  # after the first that is refused again, `issue` only queues
                    seg = parked.popleft()
                    if isinstance(seg, Request):
                        seg.queued = now
                    self.issue(seg)
            finally:
                layer.parked.extend(parked)
        self.busy = any(layer.parked for layer in self._layers)

    def _submit_layer(self, layer: Layer) -> None:
        batch = layer.batch
        if batch:
            layer.batch = []
        try:
            finished = layer.submit(layer.dd)
        except Exception as exc:
            if isinstance(exc, TapError):
                log.error("%s: submit failed: %s", layer.dd.name, exc.message)
                show_where(exc)
            elif not isinstance(exc, OSError):
                dd = layer.dd
                log.exception("%s: the driver %s failed to submit", dd.name, dd.drv.disk_type)
            layer.batch = batch
            for each in self._sharing:  # theirs was submitted with ours
                if layer.dd in each.layer_of:
                    each._lose_batch(each.layer_of[layer.dd], errno_of(exc))
            return
        if batch:
            self._remember(layer, batch)
        layer.dd.early = 0
        if finished:
            self.progress = True

    def _lose_batch(self, layer: Layer, code: int) -> None:
        """What was queued since the last submit will not be answered."""
        batch, layer.batch = layer.batch, []
        for seg in batch:
            self._returned_error(seg, code)

    @staticmethod
    def _remember(layer: Layer, batch: list[Segment]) -> None:
        """Keep what was submitted; what has been answered since is forgotten from time to time."""
        layer.handed += batch
        if len(layer.handed) > _HANDED_LIMIT:
            layer.handed = [seg for seg in layer.handed if seg.pending]

    @property
    def timeout(self) -> float | None:
        """Seconds after which `turn` must be called even if nothing happens; None: for ever."""
        if self.fills and not all(fill.waits for fill in self.fills):
            return 0.0
        if not self.busy:
            return None
        return max(self._retry_at - monotonic(), 0.0)

    @property
    def waiting(self) -> int:
        """Segments that no driver has taken yet."""
        return sum(len(layer.parked) for layer in self._layers)

    def poll_fds(self) -> list[tuple[int, DiskDriver, int]]:
        """What is to be polled: (descriptor, image, sid), of the whole chain."""
        return [
            (fd, layer.dd, sid)
            for layer in self._layers
            for sid, fd in enumerate(layer.dd.io_fd)
            if fd is not None
        ]
