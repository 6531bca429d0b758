"""Writing sparse files: in place, or into new grains; zeroes and discards."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any, Final

from tap_vmdk.allocating import AllocatingPart
from tap_vmdk.grains import DAMAGED, DAMAGED_TABLE
from tap_vmdk.tables import ZERO
from tapcore import DiskDriver, ImageFormatError, TapError, TdCallback

_STEPS: Final = 256
"""Runs that a discard or zeroing looks at before it lets others have their turn."""
_DAMAGED: Final = ImageFormatError(DAMAGED_TABLE)


class WritablePart(AllocatingPart):
    """A sparse file that is written."""

    # ---- write ------------------------------------------------------------------------------

    def write(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """A part of one grain that is there is written here, all else by `_write_runs`."""
        at = sector - self.start
        table = self._tables.get(at >> self._table_shift)
        if table is not None:
            skip = at & self._grain_mask
            if skip + nb <= self._grain:
                place = table[(at >> self._grain_shift) & self._entry_mask]
                if place > 1:
                    return self._write_data(dd, place + skip, sector, nb, buf, cb, id, prv)
        return self._write_runs(dd, sector, nb, buf, cb, id, prv)

    def _write_data(
        self,
        dd: DiskDriver,
        place: int,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        res = self._write_now(place << 9, buf)
        if res is None:
            return self.map.file.queue_write(place << 9, buf, (cb, dd, sector, nb, id, prv))
        return cb(dd, res, sector, nb, id, prv)

    def _write_runs(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        finished = 0
        while nb:
            at = sector - self.start
            busy = self.busy.get(at >> self._grain_shift)
            if busy is not None:
                count = min(self._grain - (at & self._grain_mask), nb)
                part = buf[: count << 9]
                again = partial(self._write_runs, dd, sector, count, part, cb, id, prv)
                busy.waiting.append(again)
            else:
                try:
                    run = self.map.run(at, nb)
                except (TapError, OSError) as exc:
                    return finished + cb(dd, self._failed(exc, dd, sector, nb), sector, nb, id, prv)
                if run is None:
                    state = (self._write_runs, buf, cb, prv)
                    self._load(dd, sector, nb, self._table_is_there, id, state)
                    return finished
                place, count = run
                if place > ZERO and self.map.writable(at, place, count):
                    part = buf[: count << 9]
                    finished += self._write_data(dd, place, sector, count, part, cb, id, prv)
                elif place == DAMAGED or place > ZERO:
                    finished += cb(
                        dd, self._failed(_DAMAGED, dd, sector, count), sector, count, id, prv
                    )
                else:
                    count = self.not_busy(at, count)
                    part = buf[: count << 9]
                    finished += self.write_new(dd, place, sector, count, part, cb, id, prv)
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished

    # ---- discard and zeroes -----------------------------------------------------------------

    def zero(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Grains that are there become holes of the file; of others an entry may say it."""
        return self._clear(dd, 0, sector, nb, id, (self._zero_hole, may_unmap, cb, prv))

    def discard(
        self, dd: DiskDriver, sector: int, nb: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """Grains that are there become holes of the file, and read as zeroes."""
        return self._clear(dd, 0, sector, nb, id, (None, True, cb, prv))

    def _clear(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
    ) -> int:
        """Go through a range, run by run; shaped as a callback, to go on from one."""
        hole, may_unmap, cb, mine = prv
        if res:
            failed: int = cb(dd, res, sector, nb, id, mine)
            return failed
        finished = 0
        for _ in range(_STEPS):
            if not nb:
                return finished
            at = sector - self.start
            busy = self.busy.get(at >> self._grain_shift)
            if busy is not None:
                busy.waiting.append(partial(self._clear, dd, 0, sector, nb, id, prv))
                return finished
            try:
                run = self.map.run(at, nb)
            except (TapError, OSError) as exc:
                return finished + int(
                    cb(dd, self._failed(exc, dd, sector, nb), sector, nb, id, mine)
                )
            if run is None:
                self._load(dd, sector, nb, self._clear, id, prv)
                return finished
            place, count = run
            if place > ZERO and self.map.writable(at, place, count):
                self._clear_data(dd, place, sector, count, nb - count, id, prv)
                return finished
            if place == DAMAGED or place > ZERO:
                finished += cb(
                    dd, self._failed(_DAMAGED, dd, sector, count), sector, count, id, mine
                )
            else:
                count = self.not_busy(at, count)
                done = hole(dd, place, at, count, may_unmap) if hole else 0
                finished += cb(dd, done, sector, count, id, mine)
            sector += count
            nb -= count
        if nb:
            self.map.file.queue_work(int, (), (self._clear, dd, sector, nb, id, prv))
        return finished

    def _clear_data(
        self,
        dd: DiskDriver,
        place: int,
        sector: int,
        nb: int,
        rest: int,
        id: int,
        prv: tuple[Any, ...],
    ) -> None:
        hole, may_unmap, cb, mine = prv

        def cleared(dd: DiskDriver, res: int, sector: int, nb: int, id: int, rest: int) -> int:
            finished: int = cb(dd, res, sector, nb, id, mine)
            if rest:
                finished += self._clear(dd, 0, sector + nb, rest, id, prv)
            return finished

        answer = (cleared, dd, sector, nb, id, rest)
        if hole is None:
            self.map.file.queue_discard(place << 9, nb << 9, answer)
        else:
            self.map.file.queue_zero(place << 9, nb << 9, may_unmap, answer)

    def _zero_hole(self, dd: DiskDriver, kind: int, at: int, nb: int, may_unmap: bool) -> int:
        """Make sectors that are not stored here zeroes; 0, or -EOPNOTSUPP."""
        if not may_unmap:
            return -errno.EOPNOTSUPP  # space has to be taken, and only writing does that
        if kind == ZERO or dd.next is None:
            return 0
        end = self.end - self.start
        whole = not at & self._grain_mask and (not nb & self._grain_mask or at + nb == end)
        if not (whole and self.map.layout.zeroes and self.map.whole_directories):
            return -errno.EOPNOTSUPP
        try:
            self.need_table(at >> self._table_shift)
            self.map.set_entries(at, ZERO, -(-nb // self._grain))
        except (TapError, OSError) as exc:
            return self._failed(exc, dd, self.start + at, nb)
        return 0
