"""Disks in memory that answer a while after something was submitted (`slow:SIZE`), or never."""

import os
import signal
import threading
from typing import Any

import attrs

from tapcore import (
    DiskDriver,
    DiskInfo,
    TdCallback,
    hookimpl,
    parse_size,
)


@attrs.define(eq=False)
class _Open:
    data: bytearray
    eventfd: int
    queued: list[Any] = attrs.field(factory=list)
    due: list[Any] = attrs.field(factory=list)
    timers: int = 0


class Slow:
    """The driver.

    Args:
        seconds: from submit to answer.
    """

    def __init__(self, seconds: float) -> None:
        self.disk_info = DiskInfo(handle="slow", name="slow", api=1, file_backed=False)
        self.seconds = seconds

    @hookimpl
    def td_open(self, dd: DiskDriver, name: str, flags: int) -> None:
        size = parse_size(name)
        dd.private = _Open(bytearray(size), os.eventfd(0, os.EFD_NONBLOCK))
        dd.io_fd[0] = dd.private.eventfd
        dd.size = size // 512

    @hookimpl
    def td_queue_read(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        def perform() -> int:
            buf[:] = dd.private.data[sector * 512 : (sector + nb_sectors) * 512]
            return cb(dd, 0, sector, nb_sectors, id, prv)

        dd.private.queued.append(perform)
        return 0

    @hookimpl
    def td_queue_write(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        def perform() -> int:
            dd.private.data[sector * 512 : (sector + nb_sectors) * 512] = buf
            return cb(dd, 0, sector, nb_sectors, id, prv)

        dd.private.queued.append(perform)
        return 0

    @hookimpl
    def td_submit(self, dd: DiskDriver) -> int:
        state: _Open = dd.private
        batch, state.queued = state.queued, []
        if not batch:
            return 0

        def due() -> None:
            state.due += batch
            state.timers -= 1
            os.eventfd_write(state.eventfd, 1)

        state.timers += 1
        timer = threading.Timer(self.seconds, due)
        timer.daemon = True
        timer.start()
        return 0

    @hookimpl
    def td_do_callbacks(self, dd: DiskDriver, sid: int) -> int:
        state: _Open = dd.private
        os.eventfd_read(state.eventfd)
        due, state.due = state.due, []
        return sum(perform() for perform in due)

    @hookimpl
    def td_close(self, dd: DiskDriver) -> None:
        state: _Open = dd.private
        assert not state.timers, "closed with requests in flight"
        os.close(state.eventfd)


class Stuck:
    """`stuck:SIZE`: a read never comes back from the system, and no signal helps."""

    disk_info = DiskInfo(handle="stuck", name="stuck", api=1, file_backed=False)

    @hookimpl
    def td_open(self, dd: DiskDriver, name: str, flags: int) -> None:
        dd.size = parse_size(name) // 512

    @hookimpl
    def td_queue_read(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        threading.Event().wait()
        return 0

    @hookimpl
    def td_queue_write(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return cb(dd, 0, sector, nb_sectors, id, prv)

    @hookimpl
    def td_close(self, dd: DiskDriver) -> None:
        """There is nothing to close."""
