"""A driver that fails as it is told to: at sectors, by the number of a call, or when it is full."""

import errno
import os
import random
from collections.abc import Callable
from typing import Any

import attrs

from tapcore import DiskDriver, DiskInfo, TdCallback, hookimpl


@attrs.define(eq=False)
class FaultyImage:
    """An image, and what goes wrong with it. Calls are numbered from 0.

    Attributes:
        size: in sectors.
        bad: errno of each sector that cannot be read, written, zeroed or discarded.
        late: answers from td_do_callbacks, in an order drawn from `seed`, not in the queue call.
        slots: requests that it takes at once (if late); more are -EBUSY.
        busy: numbers of the queue calls that are -EBUSY for no reason.
        faults: what else a queue call does, by its number: an exception is raised, a negative
            errno returned, "too many" sectors answered, "half" answered and the rest -EIO,
            "late and raise": queued, but then an exception.
        submit_faults: what a td_submit raises, by its number.
        reap_faults: what a td_do_callbacks raises, by its number.
        flush_faults: results of the flushes, by their number.
        violations: what the core did wrong.
        reads, writes: (sector, nb_sectors) of each call that was taken.
    """

    size: int
    sector_size: int = 512
    bad: dict[int, int] = attrs.field(factory=dict)
    late: bool = False
    slots: int | None = None
    seed: int = 0
    busy: set[int] = attrs.field(factory=set)
    faults: dict[int, Exception | int | str] = attrs.field(factory=dict)
    submit_faults: dict[int, Exception] = attrs.field(factory=dict)
    reap_faults: dict[int, Exception] = attrs.field(factory=dict)
    flush_faults: dict[int, int] = attrs.field(factory=dict)
    data: bytearray = b""  # type: ignore[assignment]
    queue_calls: int = 0
    submit_calls: int = 0
    reap_calls: int = 0
    flush_calls: int = 0
    closes: int = 0
    violations: list[str] = attrs.field(factory=list)
    reads: list[tuple[int, int]] = attrs.field(factory=list)
    writes: list[tuple[int, int]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.data = self.data or bytearray(self.size * 512)


@attrs.define(eq=False)
class _Open:
    image: FaultyImage
    rng: random.Random
    eventfd: int
    queued: list[Callable[[], int]] = attrs.field(factory=list)
    submitted: list[Callable[[], int]] = attrs.field(factory=list)


class Faulty:
    """Images come from `options.private["images"]` by name."""

    disk_info = DiskInfo(handle="faulty", name="fails", api=1)

    @hookimpl
    def td_open(self, dd: DiskDriver, name: str, flags: int) -> None:
        images = dd.options.private["images"]
        image: FaultyImage = images.get(name) or images[os.path.basename(name)]
        dd.private = _Open(image, random.Random(image.seed), os.eventfd(0, os.EFD_NONBLOCK))
        dd.io_fd[0] = dd.private.eventfd
        dd.size = image.size
        dd.sector_size = image.sector_size

    @hookimpl
    def td_close(self, dd: DiskDriver) -> None:
        dd.private.image.closes += 1
        os.close(dd.private.eventfd)

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
        image: FaultyImage = dd.private.image

        def read(start: int, end: int) -> None:
            image.reads.append((start, end - start))
            buf[(start - sector) * 512 : (end - sector) * 512] = image.data[start * 512 : end * 512]

        return self._queue(dd, sector, nb_sectors, cb, id, prv, read)

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
        image: FaultyImage = dd.private.image

        def write(start: int, end: int) -> None:
            image.writes.append((start, end - start))
            content = buf[(start - sector) * 512 : (end - sector) * 512]
            image.data[start * 512 : end * 512] = content

        return self._queue(dd, sector, nb_sectors, cb, id, prv, write)

    @hookimpl
    def td_queue_flush(self, dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
        image: FaultyImage = dd.private.image
        res = image.flush_faults.get(image.flush_calls, 0)
        image.flush_calls += 1
        if not image.late:
            return cb(dd, res, 0, 0, id, prv)
        dd.private.queued.append(lambda: cb(dd, res, 0, 0, id, prv))
        return 0

    def _queue(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        cb: TdCallback,
        id: int,
        prv: Any,
        transfer: Callable[[int, int], None],
    ) -> int:
        state: _Open = dd.private
        image = state.image
        number = image.queue_calls
        image.queue_calls += 1
        unit = image.sector_size // 512
        end = sector + nb_sectors
        if sector % unit or (nb_sectors % unit and end != image.size):
            image.violations.append(f"{nb_sectors} sectors at {sector}, in units of {unit}")
        if number in image.busy:
            return -errno.EBUSY
        if image.slots is not None and len(state.queued) + len(state.submitted) >= image.slots:
            return -errno.EBUSY

        def perform() -> int:
            finished = 0
            for start, stop, code in _runs(image.bad, sector, end):
                if not code:
                    transfer(start, stop)
                finished += cb(dd, -code, start, stop - start, id, prv)
            return finished

        fault = image.faults.get(number)
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, int):
            return fault
        if fault == "too many":
            return cb(dd, 0, sector, nb_sectors + 1, id, prv)
        if fault == "half":
            cb(dd, 0, sector, nb_sectors // 2, id, prv)
            return -errno.EIO
        if not image.late:
            return perform()
        state.queued.append(perform)
        return 0

    @hookimpl
    def td_submit(self, dd: DiskDriver) -> int:
        state: _Open = dd.private
        number = state.image.submit_calls
        state.image.submit_calls += 1
        queued = state.queued[:]
        state.queued.clear()
        if number in state.image.submit_faults:
            raise state.image.submit_faults[number]
        state.submitted += queued
        if state.submitted:
            os.eventfd_write(state.eventfd, 1)
        return 0

    @hookimpl
    def td_do_callbacks(self, dd: DiskDriver, sid: int) -> int:
        state: _Open = dd.private
        number = state.image.reap_calls
        state.image.reap_calls += 1
        if number in state.image.reap_faults:
            raise state.image.reap_faults[number]
        os.eventfd_read(state.eventfd)
        state.rng.shuffle(state.submitted)
        finished = state.submitted.pop()() if state.submitted else 0
        if state.submitted:
            os.eventfd_write(state.eventfd, 1)
        return finished


def _runs(bad: dict[int, int], sector: int, end: int) -> list[tuple[int, int, int]]:
    """Neighbours with the same errno (0: good) together."""
    runs: list[tuple[int, int, int]] = []
    for at in range(sector, end):
        code = bad.get(at, 0)
        if runs and runs[-1][2] == code:
            runs[-1] = (runs[-1][0], at + 1, code)
        else:
            runs.append((at, at + 1, code))
    return runs
