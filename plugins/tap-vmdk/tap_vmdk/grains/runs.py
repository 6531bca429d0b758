"""Reading a range run by run: holes, zeroes and damage are answered, content is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tap_vmdk.grains.lookup import Grains
from tap_vmdk.sparse.entries import HOLE, ZERO
from tap_vmdk.sparse.grainmap import DAMAGED
from tapcore import BLK_NOT_ALLOCATED, DiskDriver, TapError, TdCallback, content_missing


class RunReader:
    """Reads the runs of a part.

    Args:
        grains: of the part.
        read_data: reads content, by its place (a sector of the file) and the arguments of a read.
    """

    def __init__(self, grains: Grains, read_data: Callable[..., int]) -> None:
        self._grains = grains
        self._read_data = read_data

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Those whose grains follow each other in the file are read with one call."""
        finished = 0
        while nb:
            try:
                run = self._grains.run(sector, nb)
            except (TapError, OSError) as exc:
                res = self._grains.failed(exc, dd, sector, nb)
                return finished + cb(dd, res, sector, nb, id, prv)
            if run is None:
                self._grains.load_and(self.read, dd, sector, nb, buf, cb, id, prv)
                return finished
            place, count = run
            part = buf[: count << 9]
            if place > ZERO:
                finished += self._read_data(place, dd, sector, count, part, cb, id, prv)
            else:
                res = self._without_content(dd, place, sector, count, part)
                finished += cb(dd, res, sector, count, id, prv)
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished

    def _without_content(
        self, dd: DiskDriver, place: int, sector: int, nb: int, buf: memoryview
    ) -> int:
        """With what a run is answered that has no content in the file."""
        if place == HOLE:
            return BLK_NOT_ALLOCATED
        if place == DAMAGED:
            reason, missing = self._grains.why_damaged(sector)
            if missing:
                return content_missing(dd, sector, nb, buf, self._grains.told(dd, reason))
            return self._grains.damaged(dd, sector, nb, reason)
        buf[:] = bytes(len(buf))
        return 0
