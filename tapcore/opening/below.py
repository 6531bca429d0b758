"""Opening an image below another, under the same policy: for drivers that are not about files."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from tapcore.constants import SECTOR_SHIFT, TD_RDONLY
from tapcore.engine import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    ZERO,
    MappedExtent,
    Request,
    chain_extents,
    engine_of,
)
from tapcore.engine.drive import EngineLoop
from tapcore.errors import ImageOpenError, TapError, open_error
from tapcore.interface.below import Then
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.extent import Extent
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.interface.registry import Registry
from tapcore.opening.binding import bind
from tapcore.opening.findparent import allow_without_file
from tapcore.opening.namedfiles import find_named_file
from tapcore.opening.names import as_handles, split_name
from tapcore.opening.opening import Opening
from tapcore.opening.probe import probe

if TYPE_CHECKING:
    from tapcore.process.timer import Timer

MAX_LEVELS: Final = 8
"""Images below each other, besides parents: names that lead back to themselves have to end."""


class ImageBelow:
    """An open image below another: see `tapcore.interface.below.Below`.

    It has an engine of its own. All that its images want to be polled is behind one descriptor.

    Args:
        disk: open, with its engine; closed with this.
        opening: how.
    """

    def __init__(self, disk: TdState, opening: Opening) -> None:
        self._disk = disk
        self._opening = opening
        self._engine = engine_of(disk)
        self._loop = EngineLoop(self._engine)
        self._poll = select.epoll()
        self._sources: dict[int, tuple[DiskDriver, int]] = {}
        self._timer: Timer | None = None
        for fd, dd, sid in self._engine.poll_fds():
            self._poll.register(fd, select.EPOLLIN)
            self._sources[fd] = (dd, sid)

    # ---- what it is -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the image."""
        return str(self._disk.image)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._engine.size

    @property
    def sector_size(self) -> int:
        """Bytes."""
        return self._engine.mask + 1

    @property
    def read_only(self) -> bool:
        """Whether it cannot be written."""
        return self._engine.read_only

    def files(self) -> list[str]:
        """Paths of the files that it consists of, parents included."""
        found = []
        for dd in self._disk.disks.chain():
            home = os.path.dirname(os.path.realpath(dd.name))
            found.append(os.path.join(home, os.path.basename(dd.name)))
            found += [os.path.join(home, named) for named in dd.drv.td_other_files(dd)]
        return found

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """What lies where, of the whole chain."""
        offset, length = sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT
        for run in chain_extents(self._disk.disks, offset, length):
            yield _as_extent(run)

    # ---- requests ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """To be polled."""
        return self._poll.fileno()

    def _queue(self, op: int, offset: int, length: int, buf: memoryview | None, then: Then) -> int:
        request = Request(op, offset, length, buf, lambda req: then(req.status))
        request.fast = op == ZERO
        self._engine.submit(request)
        return 0

    def queue_read(self, offset: int, buf: memoryview, then: Then) -> int:
        """Fill a buffer."""
        return self._queue(READ, offset, len(buf), buf, then)

    def queue_write(self, offset: int, buf: memoryview, then: Then) -> int:
        """Write a buffer."""
        return self._queue(WRITE, offset, len(buf), buf, then)

    def queue_flush(self, then: Then) -> int:
        """Make safe what was answered."""
        return self._queue(FLUSH, 0, 0, None, then)

    def queue_discard(self, offset: int, length: int, then: Then) -> int:
        """The content of a range is no longer needed."""
        return self._queue(DISCARD, offset, length, None, then)

    def queue_zeroes(self, offset: int, length: int, may_unmap: bool, then: Then) -> int:
        """Make a range zeroes, where that is quick."""
        request = Request(ZERO, offset, length, None, lambda req: then(req.status))
        request.fast, request.may_unmap = True, may_unmap
        self._engine.submit(request)
        return 0

    def submit(self) -> None:
        """Hand in what was queued."""
        self._loop.turn()
        self._wake_in_time()

    def reap(self) -> None:
        """Give the answers that have come."""
        try:
            for fd, _ in self._poll.poll(0):
                source = self._sources.get(fd)
                if source is not None:
                    self._engine.readable(*source)
                elif self._timer is not None:
                    self._timer.run_due()
        except BaseException:
            self._loop.break_off()
            raise
        self.submit()

    def _wake_in_time(self) -> None:
        """A driver that is full is asked again after a while: nobody else counts the time."""
        seconds = self._engine.timeout
        if seconds is None:
            return
        if self._timer is None:
            from tapcore.process.timer import Timer

            self._timer = Timer()
            self._poll.register(self._timer.fd, select.EPOLLIN)
        if self._timer.pending is None or seconds < self._timer.pending:
            self._timer.put(seconds, _nothing)

    # ---- now --------------------------------------------------------------------------------

    def _now(
        self,
        op: int,
        offset: int,
        length: int,
        buf: memoryview | None,
        *,
        fast: bool = False,
        may_unmap: bool = True,
    ) -> None:
        done: list[int] = []
        request = Request(op, offset, length, buf, lambda req: done.append(req.status))
        request.fast, request.may_unmap = fast, may_unmap
        self._engine.submit(request)
        self._loop.run_until(lambda: bool(done))
        if done[0]:
            raise OSError(-done[0], os.strerror(-done[0]))

    def read(self, offset: int, length: int) -> bytes:
        """Read, and wait for it."""
        buf = bytearray(length)
        self.read_into(offset, memoryview(buf))
        return bytes(buf)

    def read_into(self, offset: int, buf: memoryview) -> None:
        """Fill a buffer, and wait for it."""
        self._now(READ, offset, len(buf), buf)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write, and wait for it."""
        self._now(WRITE, offset, len(data), memoryview(data))

    def discard(self, offset: int, length: int) -> None:
        """The content of a range is no longer needed; waits."""
        self._now(DISCARD, offset, length, None)

    def zero(self, offset: int, length: int, may_unmap: bool) -> None:
        """Make a range zeroes where that is quick, and wait for it."""
        self._now(ZERO, offset, length, None, fast=True, may_unmap=may_unmap)

    def flush(self) -> None:
        """Wait until all is on disk."""
        self._now(FLUSH, 0, 0, None)

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for what is under way, flush, close."""
        try:
            self._loop.finish()
            self._opening.close_disk(self._disk)
        finally:
            self._let_go()

    def abandon(self) -> None:
        """After a call that was broken off: release the files, and ask no driver."""
        self._opening.abandon_disk(self._disk)
        self._let_go()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.abandon()
            self._timer = None
        self._poll.close()


def _nothing() -> None:
    """Only to be woken."""


def _as_extent(run: MappedExtent) -> Extent:
    return Extent(
        sector=run.start >> SECTOR_SHIFT,
        nb_sectors=run.length >> SECTOR_SHIFT,
        kind=run.kind,
        fd=run.fd,
        filename=run.filename,
        offset=run.offset,
        allocated=run.allocated,
        missing=run.missing,
    )


# ---- opening -------------------------------------------------------------------------------------


def open_below(
    opening: Opening, registry: Registry, dd: DiskDriver, name: str, expected: str
) -> ImageBelow:
    """See `DiskDriver.open_below`.

    Args:
        opening: how.
        registry: the drivers.
        dd: the image above.
        name: `[HANDLE:]PATH`.
        expected: as there.
    """
    options = below_of(dd.options, dd.name)
    flags = dd.flags & TD_RDONLY
    try:
        if options.named_by is None:
            disk = open_given(opening, registry, name, flags, options, expected)
        else:
            open_disk = partial(opening.open_disk, registry=registry, flags=flags, options=options)
            disk = _open_recorded(dd, name, registry, open_disk, expected)
    except (TapError, OSError) as exc:
        failed = open_error(exc, name)
        if failed.image != dd.name:
            failed.message = f"below it {failed.image or name}: {failed.message}"
        failed.image = dd.name
        raise failed from None
    try:
        below = ImageBelow(disk, opening)
    except BaseException:
        with suppress(TapError):
            opening.close_disk(disk)
        raise
    dd.options.opened.add(below)
    return below


def open_given(
    opening: Opening,
    registry: Registry,
    name: str,
    flags: int,
    options: OpenOptions,
    expected: str = "",
) -> TdState:
    """An image below that the user has named; its format is looked for where no handle says it."""
    disk_id, bound = split_name(name, registry), None
    if not disk_id.drivertype:
        bound = bind(disk_id.name)
        disk_id.drivertype = _probed(disk_id.name, bound, registry, expected)
        options = attrs.evolve(options, probed=True)
    return opening.open_disk(disk_id, registry, flags=flags, options=options, bound=bound)


def below_of(options: OpenOptions, image: str) -> OpenOptions:
    """How what lies below an image is opened.

    Raises:
        ImageOpenError: there are too many images below each other.
    """
    if options.level >= MAX_LEVELS:
        text = f"has more than {MAX_LEVELS} images below each other"
        raise ImageOpenError(text, image=image, errno=errno.ELOOP)
    return attrs.evolve(
        options,
        bound=None,
        filters=(),  # which are around the image above
        level=options.level + 1,
        snapshot="",
        probed=False,
        metadata_only=False,
    )


def _open_recorded(
    dd: DiskDriver,
    name: str,
    registry: Registry,
    open_disk: Callable[..., TdState],
    expected: str,
) -> TdState:
    """An image whose name is a stranger's word: only what the policy allows."""
    wanted = as_handles(DiskId(name), registry)
    home = dd.td_state.home
    if wanted.drivertype and not registry.get(wanted.drivertype).file_backed:
        allow_without_file(wanted, dd, registry)
        return open_disk(wanted, home=home)
    bound = find_named_file(dd, wanted.name, role="image below")
    handle = wanted.drivertype or _probed(bound.real, bound, registry, expected)
    return open_disk(DiskId(bound.real, handle), bound=bound, home=home)


def _probed(path: str, bound: BoundFile, registry: Registry, expected: str) -> str:
    """The handle of a file's driver; it is let go where there is none."""
    try:
        return probe(path, registry, bound, expected=expected)
    except BaseException:
        bound.let_go()
        raise
