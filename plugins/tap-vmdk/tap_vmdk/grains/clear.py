"""Discards and zeroes of grains that are stored plain."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tap_vmdk.grains.busy import BusyGrains
from tap_vmdk.grains.lookup import Grains
from tap_vmdk.grains.tables import TableStore
from tap_vmdk.sparse.entries import ZERO
from tap_vmdk.sparse.grainmap import DAMAGED, DAMAGED_TABLE
from tapcore import DiskDriver, ImageFormatError, TapError, TdCallback

_STEPS: Final = 256
"""Runs that a discard or zeroing looks at before it lets others have their turn."""
_DAMAGED: Final = ImageFormatError(DAMAGED_TABLE)

_Hole = Callable[[DiskDriver, int, int, int, bool], int]
"""What becomes of sectors that are not stored: `(dd, kind, sector, nb, may_unmap)`."""


class Clearer:
    """The discards and zeroes of a part.

    Args:
        grains: of the part.
        tables: of the file.
        busy: grains that are being written.
    """

    def __init__(self, grains: Grains, tables: TableStore, busy: BusyGrains) -> None:
        self._grains = grains
        self._map = grains.map
        self._file = grains.file
        self._tables = tables
        self._busy = busy

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
        """As `Writer.zero`."""
        return self._clear(dd, 0, sector, nb, id, (self._zero_hole, may_unmap, cb, prv))

    def discard(
        self, dd: DiskDriver, sector: int, nb: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """As `Writer.discard`."""
        return self._clear(dd, 0, sector, nb, id, (None, True, cb, prv))

    def _clear(
        self,
        dd: DiskDriver,
        res: int,
        sector: int,
        nb: int,
        id: int,
        prv: tuple[_Hole | None, bool, TdCallback, Any],
    ) -> int:
        """Go through a range, run by run; shaped as a callback, to go on from one."""
        hole, may_unmap, cb, mine = prv
        if res:
            return cb(dd, res, sector, nb, id, mine)
        finished = 0
        for _ in range(_STEPS):
            if not nb:
                return finished
            busy = self._busy.run_of(sector - self._grains.start)
            if busy is not None:
                busy.waiting.append(partial(self._clear, dd, 0, sector, nb, id, prv))
                return finished
            try:
                run = self._grains.run(sector, nb)
            except (TapError, OSError) as exc:
                res = self._grains.failed(exc, dd, sector, nb)
                return finished + cb(dd, res, sector, nb, id, mine)
            if run is None:
                self._grains.load(dd, sector, nb, self._clear, id, prv)
                return finished
            place, count = run
            if place > ZERO and self._may_be_written(sector, place, count):
                self._clear_data(place, dd, sector, count, nb - count, id, prv)
                return finished
            if place == DAMAGED or place > ZERO:
                done = self._grains.failed(_DAMAGED, dd, sector, count)
            else:
                count = self._busy.free(sector - self._grains.start, count)
                done = hole(dd, place, sector, count, may_unmap) if hole else 0
            finished += cb(dd, done, sector, count, id, mine)
            sector += count
            nb -= count
        if nb:
            self._file.queue_work(int, (), (self._clear, dd, sector, nb, id, prv))
        return finished

    def _may_be_written(self, sector: int, place: int, nb: int) -> bool:
        return self._map.writable(sector - self._grains.start, place, nb)

    def _clear_data(
        self,
        place: int,
        dd: DiskDriver,
        sector: int,
        nb: int,
        rest: int,
        id: int,
        prv: tuple[_Hole | None, bool, TdCallback, Any],
    ) -> None:
        """Clear a run in the file, and then go on with the rest of the range."""
        hole, may_unmap, cb, mine = prv

        def cleared(dd: DiskDriver, res: int, sector: int, nb: int, id: int, rest: int) -> int:
            finished = cb(dd, res, sector, nb, id, mine)
            if rest:
                finished += self._clear(dd, 0, sector + nb, rest, id, prv)
            return finished

        answer = (cleared, dd, sector, nb, id, rest)
        if hole is None:
            self._file.queue_discard(place << 9, nb << 9, answer)
        else:
            self._file.queue_zero(place << 9, nb << 9, may_unmap, answer)

    def _zero_hole(self, dd: DiskDriver, kind: int, sector: int, nb: int, may_unmap: bool) -> int:
        """Make sectors that are not stored here zeroes; 0, or -EOPNOTSUPP."""
        if not may_unmap:
            return -errno.EOPNOTSUPP  # space has to be taken, and only writing does that
        if kind == ZERO or dd.next is None:
            return 0
        grains, at = self._grains, sector - self._grains.start
        mask = grains.grain_mask
        whole = not at & mask and (not nb & mask or sector + nb == grains.end)
        if not (whole and self._map.layout.zeroes and self._map.whole_directories):
            return -errno.EOPNOTSUPP
        try:
            self._tables.need_table(at >> grains.table_shift)
            self._map.set_entries(at, ZERO, -(-nb // grains.grain))
        except (TapError, OSError) as exc:
            return grains.failed(exc, dd, sector, nb)
        return 0
