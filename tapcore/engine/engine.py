"""The engine of one disk: takes requests as clients make them, in bytes, of any shape and size."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

from tapcore.constants import DEFAULT_SECTOR_SIZE, SECTOR_SHIFT
from tapcore.engine.accounting import Accounts
from tapcore.engine.copyonread import submit_copy_on_read
from tapcore.engine.drive import EngineLoop
from tapcore.engine.guard import Guard, GuardedWrite, ends_of
from tapcore.engine.holding import Holding
from tapcore.engine.overdue import Overdue
from tapcore.engine.pieces import PiecedWrites
from tapcore.engine.requests import (
    FLUSH,
    READ,
    WRITE,
    WRITE_COMPRESSED,
    ZERO,
    Request,
    cluster_of,
    layers_of,
    unit_of,
)
from tapcore.engine.unaligned import submit_unaligned
from tapcore.interface.models import DiskDriver, TdState

if TYPE_CHECKING:
    from tapcore.engine.directlane import DirectLane
    from tapcore.engine.lane import Lane


class Engine(Holding, PiecedWrites):
    """All requests of one open disk.

    Use: `submit` any number of requests, then `turn` once; poll `dd.io_fd` of every image and call
    `readable`, then `turn` again. A request's `done` may be called inside any of these.

    Args:
        disk: with its chain open; its `blkif` becomes this engine.
        guard: asked before an end of the disk changes, by which it is told what it is.

    Attributes:
        disk: as given.
        guard: as given.
        layers: the images, child first.
        order: which writes must wait for which.
        size: of the disk, in bytes.
        read_only: writes are refused.
        mask: the child's unit (bytes), less one; drivers get whole units.
        cluster_size: the child's unit of allocation (bytes).
        giving_up: called when places in the images' host files are about to be given up, and may
            hold other content soon.
        lane_writes: a front end may write in place by itself, past the engine.
        broken_off: an exception has left it, or a driver, in the middle of something: some requests
            may never be answered, and nothing may be asked of it, or saved, any more.
    """

    def __init__(self, disk: TdState, guard: Guard | None = None) -> None:
        self.disk = disk
        self.guard = guard
        self.layers = layers_of(disk.disks)
        self._leaf = self.layers[0]
        self._accounts = Accounts(disk.image, self.layers)
        self._dispatcher = self._accounts.dispatcher
        self._overdue = Overdue(self.layers, self._accounts.past_drivers)
        self.order = self._accounts.order
        self._head_end = self._tail_start = 0
        self.giving_up: list[Callable[[], object]] = []
        self.on_hold: list[Callable[[], object]] = []
        self.held = self.broken_off = False
        self.lane_writes = True
        self._changes = 0
        self._coming: set[Request] = set()
        self.refresh()
        disk.blkif = self

    def refresh(self) -> None:
        """Take over what the chain says of itself, after open and resize."""
        dd = self._leaf.dd
        self.disk.size, self.disk.sector_size = dd.size, dd.sector_size
        self.size = dd.size << SECTOR_SHIFT
        self.read_only = dd.read_only
        self.mask = unit_of(dd) - 1
        self.cluster_size = cluster_of(dd)
        if self.guard is not None:
            (_, self._head_end), (self._tail_start, _) = ends_of(self, self.guard)
        self._refresh_lane()

    @cached_property
    def lane(self) -> Lane:
        """Where a front end may move the bytes itself."""
        from tapcore.engine.lane import Lane

        lane = Lane(self.order)
        self._tell(lane)
        return lane

    @cached_property
    def direct_lane(self) -> DirectLane:
        """The same past the page cache, where the images are opened so."""
        from tapcore.engine.directlane import DirectLane

        lane = DirectLane(self._accounts)
        self._tell(lane)
        return lane

    def _refresh_lane(self) -> None:
        for name in ("lane", "direct_lane"):
            lane: Lane | None = vars(self).get(name)
            if lane is not None:
                self._tell(lane)

    def _tell(self, lane: Lane) -> None:
        writable = (self._head_end, self._tail_start) if self.guard is not None else (0, self.size)
        if not self.lane_writes:
            writable = 0, 0
        parents = not self._accounts.copy_on_read
        lane.refresh(self._leaf.dd, unit=self.mask + 1, writable=writable, parents=parents)

    def enable_copy_on_read(self) -> None:
        """From now on, what a read finds in a parent is written into the child as well."""
        self._accounts.enable_copy_on_read()
        self._refresh_lane()

    # ---- taking requests --------------------------------------------------------------------

    def submit(self, req: Request) -> None:
        """Take a request; its `done` is called when it is finished, perhaps before this returns."""
        op = req.op
        length = req.length
        if req.offset + length > self.size or req.offset < 0:
            writes = op in (WRITE, ZERO, WRITE_COMPRESSED)
            self.refuse(req, errno.ENOSPC if writes else errno.EINVAL)
            return
        if op != READ and self.read_only and op != FLUSH:
            self.refuse(req, errno.EROFS)
            return
        if op == WRITE_COMPRESSED and not self._whole_clusters(req):
            self.refuse(req, errno.EINVAL)
            return
        accounts = self._accounts
        accounts.in_flight += 1
        if op == FLUSH:
            accounts.flush(req)
            return
        if not length:
            accounts.finish(req)
            return
        if (req.offset | length) & self.mask and not self._reaches_end(req):
            self._changes += op != READ
            if op == READ or not self._at_guarded_end(req):
                submit_unaligned(self, req)
            return
        if op == READ:
            if accounts.copy_on_read:
                self._changes += 1
                submit_copy_on_read(self, req)
                return
            self._dispatcher.issue(req)
            return
        self.submit_write(req)

    def _reaches_end(self, req: Request) -> bool:
        """The last unit of a disk may be cut; it is whole sectors all the same."""
        return (
            not req.offset & self.mask
            and req.offset + req.length == self.size
            and not req.length & (DEFAULT_SECTOR_SIZE - 1)
        )

    def _whole_clusters(self, req: Request) -> bool:
        """Of which the disk's last may be cut by its end."""
        size, end = self.cluster_size, req.offset + req.length
        return not req.offset % size and (not end % size or end == self.size)

    def submit_write(self, req: Request) -> None:
        """Start an aligned request that changes content, in order with what holds its range."""
        self._changes += 1
        if self.guard is not None and self._at_guarded_end(req):
            return
        start, end = req.sector, req.sector + req.nb_sectors
        if self.order.strict and self.order.must_wait(start, end):
            self.order.wait(start, end, lambda: self._submit_late(req))
            return
        self.order.writing.add(req)  # before the driver's call: others may start inside it
        self._dispatcher.issue(req)

    def _submit_late(self, req: Request) -> None:
        """It has waited for what holds its range."""
        req.queued = monotonic()
        self.submit_write(req)

    # ---- parts of other requests ------------------------------------------------------------

    def submit_internal(self, req: Request) -> None:
        """A part of a request that holds its range: whole units, and exempt from the order."""
        self._accounts.submit_internal(req)

    def finish_internal(self, req: Request, status: int) -> None:
        """All parts of a request are finished; `status` is 0 or -errno."""
        self._accounts.finish_internal(req, status)

    # ---- the ends of a disk that was probed -------------------------------------------------

    def _at_guarded_end(self, req: Request) -> bool:
        """Whether the guard has to be asked; then it is, and the request is taken care of."""
        if self.guard is None or not self._touches_end(req):
            return False
        GuardedWrite(self, self.guard, req, self._write_held).start()
        return True

    def _write_held(self, req: Request) -> None:
        """A write, aligned or not, whose range is held."""
        if (req.offset | req.length) & self.mask and not self._reaches_end(req):
            self._accounts.in_flight += 1
            submit_unaligned(self, req, held=True)
            return
        self.submit_internal(req)

    # ---- changes of the chain ---------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no image has anything in hand.

        Writes may be under way all the same of which the next piece has not come from the client.
        """
        waiting = sum(not req.forwarded for req in self._coming)
        return self._accounts.in_flight == waiting

    def follow(self, guard: Guard | None = None) -> None:
        """Go on with what `disk.disks` is now; the engine is `idle`.

        Args:
            guard: as at first.
        """
        self.guard = guard
        self._head_end = self._tail_start = 0
        self.layers = layers_of(self.disk.disks)
        self._leaf = self.layers[0]
        self._accounts.follow(self.layers)
        self._overdue = Overdue(self.layers, self._accounts.past_drivers)
        self._changes += 1
        for req in self._coming:
            req.layer = self._leaf
        self.refresh()

    # ---- others that use the same images ----------------------------------------------------

    def share_with(self, other: Engine) -> None:
        """The other's chain goes on with this one's images, which this one reaps for both.

        Where their driver fails, each answers for its own requests. No image is written so.
        """
        self._dispatcher.share_with(other._dispatcher)

    def share_no_more(self, other: Engine) -> None:
        """The other is done with them; nothing of it may be in flight."""
        self._dispatcher.share_no_more(other._dispatcher)

    # ---- turns of the loop ------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests taken and not finished."""
        return self._accounts.in_flight

    @property
    def waiting(self) -> int:
        """Parts of requests that no driver has taken yet: it was full, or others hold the range."""
        return self._dispatcher.waiting + self.order.waiting

    @property
    def content_mark(self) -> int | None:
        """As long as this stays the same number, nothing was written; None while something may be.

        For who keeps what he has read of a disk's content, or of what images say of it.
        """
        if self.in_flight:
            return None
        direct: DirectLane | None = vars(self).get("direct_lane")
        return self._changes + self.lane.changes + (0 if direct is None else direct.changes)

    @property
    def timeout(self) -> float | None:
        """Seconds after which `turn` must be called even if nothing happens; None: for ever."""
        seconds = self._dispatcher.timeout
        if not self._accounts.in_flight:
            return seconds
        look = self._overdue.seconds_left()
        return look if seconds is None or look < seconds else seconds

    def poll_fds(self) -> list[tuple[int, DiskDriver, int]]:
        """What is to be polled: (descriptor, image, sid), of the whole chain."""
        return self._dispatcher.poll_fds()

    def readable(self, dd: DiskDriver, sid: int) -> None:
        """`dd.io_fd[sid]` is readable."""
        self._dispatcher.readable(dd, sid)

    def turn(self) -> None:
        """End of a batch: try again what was refused, and submit until nothing is left to."""
        self._dispatcher.turn()

    # ---- for drivers and tools --------------------------------------------------------------

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Let the disk work until `done()` holds: for a hook that must not return before."""
        EngineLoop(self).run_until(done)

    def read_below(
        self, dd: DiskDriver, sector: int, buf: memoryview, done: Callable[[Request], object]
    ) -> None:
        """Read what the parents of an image hold: for a driver that copies before it writes.

        Args:
            dd: the image whose parent is read.
            sector: first sector.
            buf: whole sectors, to be filled; zeroes where no parent holds them.
            done: called with the request when it is finished; its `status` is 0 or -errno.
        """
        req = Request(READ, sector << SECTOR_SHIFT, len(buf), buf, done)
        req.layer = self._dispatcher.layer_of[dd]
        self._accounts.in_flight += 1
        if req.nb_sectors:
            self._accounts.read_hole(req, req.sector, req.nb_sectors)
        else:
            self._accounts.finish(req)

    def before_giving_up(self) -> None:
        """Places in host files are given up next: who still reads there has to be done first."""
        for call in self.giving_up:
            call()

    def refuse(self, req: Request, code: int) -> None:
        """Answer a request that was not taken with a positive errno."""
        req.status = -code
        req.done(req)

    def call(self, req: Request) -> Any:
        """For tests and tools: submit one request and take one turn."""
        self.submit(req)
        self.turn()


def engine_of(disk: TdState) -> Engine:
    """The engine of an open disk."""
    assert isinstance(disk.blkif, Engine)
    return disk.blkif
