"""A driver driven by its hooks, with nothing in between, and every answer accounted for."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import deque
from time import monotonic
from types import TracebackType
from typing import Any

from tapcore.constants import BLK_NOT_ALLOCATED, SECTOR_SHIFT
from tapcore.engine import engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.errors import TapError, errno_of
from tapcore.interface.models import DiskDriver, TdState
from tapcore.opening.chain import close_disk
from tapcore.testkit.asked import MARGIN, Asked
from tapcore.testkit.failing import broken, error_name, run_of

LARGEST = (1 << 20) >> SECTOR_SHIFT
"""Sectors that the core asks for in one read or write at most."""

_GUARD = b"\xa5" * MARGIN
_UNREAD = b"\x5a\x5a" + os.urandom(6)
"""What a read finds in its memory; no disk holds it."""


class Session:
    """An open image, its hooks called directly, and the accounts of what they answer.

    Use: `read`, `write` and so on queue any number of requests; `finish` submits, polls until all
    is answered, and fails the check if the contract was broken.

    Args:
        disk: open, with its engine (which serves `read_below` and the parents only).
        patience: seconds to wait for an answer.
        errors: errors are answers like others; False makes each a fault.
    """

    def __init__(self, disk: TdState, *, patience: float, errors: bool = False) -> None:
        self.disk = disk
        self.dd: DiskDriver = disk.disks
        self.engine = engine_of(disk)
        self.patience = patience
        self.errors = errors
        self.asked: list[Asked] = []
        self.busy = 0
        self.faults: list[str] = []
        self.told: set[tuple[str, int]] = set()  # operations and the -errno that they came to
        self._waiting: deque[Asked] = deque()
        self._thread = threading.get_ident()
        self._open = True
        self._finished_inside = 0
        self._number = 0

    @property
    def sectors(self) -> int:
        """Size of the image."""
        return self.dd.size

    @property
    def unit(self) -> int:
        """Sectors in the driver's unit."""
        return self.dd.sector_size >> SECTOR_SHIFT

    def any_range(self, rng: random.Random, most: int = LARGEST) -> tuple[int, int]:
        """A random run of whole units (the last one may be cut), as (sector, nb_sectors)."""
        unit = self.unit
        units = -(-self.sectors // unit)
        first = rng.randrange(units)
        count = rng.choice((1, 1, 2, 3, rng.randint(1, max(most // unit, 1))))
        end = min((first + min(count, max(most // unit, 1))) * unit, self.sectors)
        return first * unit, end - first * unit

    # ---- asking -----------------------------------------------------------------------------

    def read(self, sector: int, nb_sectors: int) -> Asked:
        """Queue a read, into memory that holds something else."""
        return self._ask("read", sector, nb_sectors, _UNREAD * (nb_sectors << SECTOR_SHIFT >> 3))

    def write(self, sector: int, content: bytes | bytearray) -> Asked:
        """Queue a write."""
        return self._ask("write", sector, len(content) >> SECTOR_SHIFT, bytes(content))

    def zero(self, sector: int, nb_sectors: int, *, may_unmap: bool = True) -> Asked:
        """Queue write zeroes; where the driver cannot, zeroes are written, as the core does."""
        asked = self._ask("zero", sector, nb_sectors, b"", may_unmap=may_unmap)
        if asked.error == -errno.EOPNOTSUPP:
            self._ask("write", sector, nb_sectors, bytes(nb_sectors << SECTOR_SHIFT))
        return asked

    def discard(self, sector: int, nb_sectors: int) -> Asked:
        """Queue a discard."""
        return self._ask("discard", sector, nb_sectors, b"")

    def flush(self) -> Asked:
        """Queue a flush."""
        return self._ask("flush", 0, 1, b"")

    def _ask(
        self, op: str, sector: int, nb_sectors: int, content: bytes, *, may_unmap: bool = True
    ) -> Asked:
        memory = bytearray(_GUARD + content + _GUARD)
        buf = memoryview(memory)[MARGIN : MARGIN + len(content)]
        asked = Asked(self._number, op, sector, nb_sectors, memory, buf, may_unmap=may_unmap)
        self._number += 1
        asked.content = content if op == "write" else b""
        asked.answered = bytearray(nb_sectors)
        asked.left = nb_sectors
        self.asked.append(asked)
        self._queue(asked)
        return asked

    def _call(self, asked: Asked) -> object:
        """What the hook says; nobody knows yet whether that is a number."""
        dd, drv, cb, number = self.dd, self.dd.drv, self._answer, asked.number
        run = (asked.sector, asked.nb_sectors)
        if asked.op == "read":
            return drv.td_queue_read(dd, *run, asked.buf, cb, number, asked)
        if asked.op == "write":
            return drv.td_queue_write(dd, *run, asked.buf, cb, number, asked)
        if asked.op == "discard":
            return drv.td_queue_discard(dd, *run, cb, number, asked)
        if asked.op == "zero":
            return drv.td_queue_write_zeroes(dd, *run, asked.may_unmap, cb, number, asked)
        return drv.td_queue_flush(dd, cb, number, asked)

    def _queue(self, asked: Asked) -> None:
        before, self._finished_inside = asked.left, 0
        try:
            res = self._call(asked)
        except (OSError, TapError) as exc:
            res = -errno_of(exc)
        if not isinstance(res, int):
            self._fault(f"{asked}: the hook returned {res!r}, not a number")
            return
        if res == -errno.EBUSY:
            self.busy += 1
            if asked.left != before:
                self._fault(f"{asked}: -EBUSY means that nothing was answered, but some was")
            self._waiting.append(asked)
        elif res < 0:
            for first, count in _missing(asked.answered):
                self._failed(asked, res, first, count)
            asked.left = 0
            asked.take_back()
        elif res > self._finished_inside:
            self._fault(
                f"{asked}: the hook returned {res}, but {self._finished_inside} requests were "
                "finished inside the call (return the sum of what the callbacks returned)"
            )

    # ---- answers ----------------------------------------------------------------------------

    def _answer(
        self, dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, prv: Any
    ) -> int:
        """The `cb` that the driver is given: believes nothing."""
        if threading.get_ident() != self._thread:
            self._fault("a callback came from another thread")
        if not isinstance(prv, Asked) or prv.number != id:
            self._fault("a callback did not hand back the `id` and `prv` of its request")
            return 0
        if not self._open:
            self._fault(f"{prv} was answered after td_close had returned")
        if dd is not self.dd:
            self._fault(f"{prv}: the callback's first argument is not the image's DiskDriver")
        if prv.op == "flush":
            return self._take_flush(prv, res, sector, nb_sectors)
        return self._take(prv, res, sector, nb_sectors)

    def _take_flush(self, asked: Asked, res: int, sector: int, nb_sectors: int) -> int:
        if (sector, nb_sectors) != (0, 0):
            self._fault("a flush is answered with sector 0 and nb_sectors 0")
        if asked.answered[0]:
            self._fault("the flush was answered twice")
            return 0
        return self._mark(asked, res, 0, 1)

    def _take(self, asked: Asked, res: int, sector: int, nb_sectors: int) -> int:
        first = sector - asked.sector
        if nb_sectors <= 0 or first < 0 or first + nb_sectors > asked.nb_sectors:
            self._fault(
                f"{asked} was answered for {run_of(sector, nb_sectors)}, outside what was asked"
            )
            return 0
        if any(asked.answered[first : first + nb_sectors]):
            again = first + asked.answered[first : first + nb_sectors].find(1)
            self._fault(f"{asked}: sector {asked.sector + again} was answered twice")
            return 0
        return self._mark(asked, res, first, nb_sectors)

    def _mark(self, asked: Asked, res: int, first: int, nb_sectors: int) -> int:
        asked.answered[first : first + nb_sectors] = b"\1" * nb_sectors
        asked.left -= nb_sectors
        if res == BLK_NOT_ALLOCATED and asked.op == "read":
            asked.holes.append((asked.sector + first, nb_sectors))
        elif res > 0:
            self._fault(f"{asked} was answered with {res}: allowed are 0, -errno, a read's hole")
        elif res:
            self._failed(asked, res, first, nb_sectors)
        elif asked.op == "read" and self.errors:  # else the content is compared
            self._filled(asked, first, nb_sectors)
        if not asked.left:
            self._finished_inside += 1
            asked.take_back()
        return 0 if asked.left else 1

    def _filled(self, asked: Asked, first: int, nb_sectors: int) -> None:
        start, end = first << SECTOR_SHIFT, (first + nb_sectors) << SECTOR_SHIFT
        at = asked.memory.find(_UNREAD * 32, MARGIN + start, MARGIN + end)
        if at >= 0:
            sector = asked.sector + ((at - MARGIN) >> SECTOR_SHIFT)
            self._fault(
                f"{asked}: sector {sector} was answered with 0, and its buffer left as it was"
            )

    def _failed(self, asked: Asked, res: int, first: int, nb_sectors: int) -> None:
        asked.error = asked.error or res
        self.told.add((asked.op, res))
        asked.failed.append((asked.sector + first, nb_sectors))
        unsupported = asked.op == "zero" and res == -errno.EOPNOTSUPP
        if not self.errors and not unsupported:
            self._fault(f"{asked} failed with {error_name(res)}")

    def _fault(self, message: str) -> None:
        if len(self.faults) < 5:
            self.faults.append(message)

    # ---- waiting ----------------------------------------------------------------------------

    def submit(self) -> None:
        """The batch is complete; what was refused as -EBUSY is tried again first."""
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            self._queue(asked)
        try:
            self.dd.drv.td_submit(self.dd)
        except (OSError, TapError) as exc:
            self._fault(f"td_submit raised {type(exc).__name__}: {exc}")
        self.engine.turn()

    def withdraw(self) -> None:
        """What was refused as -EBUSY is not asked again: the driver does not owe an answer."""
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            self.asked.remove(asked)
            asked.take_back()

    def poll(self, seconds: float) -> bool:
        """Wait for the image's descriptors (and its parents'); False when nothing happened."""
        return EngineLoop(self.engine, reap=self._reap).wait(seconds)

    def _reap(self, dd: DiskDriver, sid: int) -> None:
        if dd is self.dd:
            dd.drv.td_do_callbacks(dd, sid)
        else:
            self.engine.readable(dd, sid)

    def finish(self) -> None:
        """Submit, wait for every answer, and fail the check if anything was wrong."""
        until = monotonic() + self.patience
        self.submit()
        while any(asked.left for asked in self.asked) and monotonic() < until and not self.faults:
            happened = self.poll(0.002 if self._waiting else min(0.2, self.patience))
            if happened:
                until = monotonic() + self.patience
            if self._waiting:
                self.submit()
            elif not happened and not self.engine.poll_fds():
                break  # nothing that could still bring an answer
        self.check()
        self.asked.clear()

    def check(self) -> None:
        """Fail the check if the contract was broken so far."""
        for asked in self.asked:
            if asked in self._waiting:
                self._fault(f"{asked} is refused with -EBUSY although nothing else is under way")
            elif asked.left:
                self._unanswered(asked)
            if asked.content and asked.buf != asked.content:
                self._fault(f"{asked} changed the buffer that it was given")
            if not asked.memory.startswith(_GUARD) or not asked.memory.endswith(_GUARD):
                self._fault(f"{asked} wrote outside its buffer")
            if asked.used_later():
                self._fault(f"{asked} was answered, and its buffer written to after that")
        if self.faults:
            broken("\n".join(self.faults))

    def _unanswered(self, asked: Asked) -> None:
        first = asked.answered.find(0)
        if asked.op == "flush":
            self._fault(f"the flush was never answered (waited {self.patience:g} s)")
            return
        self._fault(
            f"{asked}: sector {asked.sector + first} was never answered, {asked.left} of "
            f"{asked.nb_sectors} are missing (waited up to {self.patience:g} s after td_submit)"
        )

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """`td_close` for every image of the chain."""
        if self._open:
            try:
                close_disk(self.disk)
            finally:
                self._open = False

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is None:
            self.check()


def _missing(answered: bytearray) -> list[tuple[int, int]]:
    """Runs of sectors without an answer, as (first, count)."""
    runs, at = [], 0
    while (at := answered.find(0, at)) >= 0:
        end = next((n for n in range(at, len(answered)) if answered[n]), len(answered))
        runs.append((at, end - at))
        at = end
    return runs


def access_mode(fd: int) -> int:
    """O_RDONLY, O_WRONLY or O_RDWR of an open descriptor."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE
    return os.O_RDONLY
