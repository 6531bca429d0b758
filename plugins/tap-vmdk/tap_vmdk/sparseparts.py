"""Reading sparse files whose grains are stored plain; what others add is in the other modules."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from tap_vmdk.descriptor import ExtentLine
from tap_vmdk.grains import DAMAGED, GrainMap
from tap_vmdk.missing import lost_grains, why_damaged
from tap_vmdk.parts import Part, moved
from tap_vmdk.tables import HOLE, ZERO
from tapcore import (
    BLK_NOT_ALLOCATED,
    DiskDriver,
    Extent,
    ImageFormatError,
    TapError,
    TdCallback,
    content_damaged,
    content_missing,
)


class SparsePart(Part):
    """A sparse file that is only read.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        map: of its grains.
        reason: why it is only read.
    """

    def __init__(self, line: ExtentLine, start: int, map: GrainMap, reason: str = "") -> None:
        super().__init__(line, start)
        self.map = map
        self.file = map.file
        self.reason = reason
        self.cluster = map.layout.grain * 512
        # what the paths of a request need, without a detour
        self._tables = map.tables
        self._table_shift = map.table_shift
        self._grain_shift = map.grain_shift
        self._grain_mask = map.grain_mask
        self._entry_mask = map.entry_mask
        self._grain = map.layout.grain
        self._read_now = map.file.read_now

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
        """A part of one grain that the page cache holds is read here, all else by `_read_runs`."""
        at = sector - self.start
        table = self._tables.get(at >> self._table_shift)
        if table is not None:
            skip = at & self._grain_mask
            if skip + nb <= self._grain:
                place = table[(at >> self._grain_shift) & self._entry_mask]
                if place > 1:
                    offset = (place + skip) << 9
                    res = self._read_now(offset, buf)
                    if res is None:
                        answer = (cb, dd, sector, nb, id, prv)
                        return self.map.file.queue_read(offset, buf, answer)
                    return cb(dd, res, sector, nb, id, prv)
        return self._read_runs(dd, sector, nb, buf, cb, id, prv)

    def _read_runs(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Run by run: those whose grains follow each other in the file are read with one call."""
        finished = 0
        while nb:
            try:
                run = self.map.run(sector - self.start, nb)
            except (TapError, OSError) as exc:
                res = self._failed(exc, dd, sector, nb)
                return finished + cb(dd, res, sector, nb, id, prv)
            if run is None:
                self._load(
                    dd, sector, nb, self._table_is_there, id, (self._read_runs, buf, cb, prv)
                )
                return finished
            place, count = run
            finished += self._read_run(dd, place, sector, count, buf[: count << 9], cb, id, prv)
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished

    def _read_run(
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
        if place > ZERO:
            return self._read_data(dd, place, sector, nb, buf, cb, id, prv)
        if place == HOLE:
            return cb(dd, BLK_NOT_ALLOCATED, sector, nb, id, prv)
        if place == DAMAGED:
            reason, missing = why_damaged(self.map, sector - self.start)
            if missing:
                res = content_missing(dd, sector, nb, buf, self._told(dd, reason))
            else:
                res = self.damaged(dd, sector, nb, reason)
            return cb(dd, res, sector, nb, id, prv)
        buf[:] = bytes(len(buf))
        return cb(dd, 0, sector, nb, id, prv)

    def _read_data(
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
        res = self._read_now(place << 9, buf)
        if res is None:
            return self.map.file.queue_read(place << 9, buf, (cb, dd, sector, nb, id, prv))
        return cb(dd, res, sector, nb, id, prv)

    # ---- tables that have to be waited for ---------------------------------------------------

    def _load(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        then: Callable[..., int],
        id: int,
        prv: tuple[Any, ...],
    ) -> None:
        """Load the table of a sector in a thread; `then` is called as a callback."""
        index = (sector - self.start) >> self._table_shift
        generation = self.map.generation
        found: list[array[int]] = []
        damage: list[ImageFormatError] = []

        def work() -> int:
            try:
                found.append(self.map.read(index))
            except ImageFormatError as exc:
                damage.append(exc)
            return 0

        def loaded(
            dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
        ) -> int:
            if damage:
                res = self._failed(damage[0], dd, sector, nb)
            elif not res and generation == self.map.generation:
                self.map.install(index, found[0])
            return then(dd, res, sector, nb, id, prv)

        self.map.file.queue_work(work, (), (loaded, dd, sector, nb, id, prv))

    def _table_is_there(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
    ) -> int:
        """Go on with a read or write that waited for a table."""
        again, buf, cb, mine = prv
        if res:
            failed: int = cb(dd, res, sector, nb, id, mine)
            return failed
        done: int = again(dd, sector, nb, buf, cb, id, mine)
        return done

    def _failed(self, exc: Exception, dd: DiskDriver, sector: int, nb: int) -> int:
        """-errno of a request that an exception has ended; damage is noted for its sectors."""
        if isinstance(exc, ImageFormatError):
            return self.damaged(dd, sector, nb, exc.message)
        return -(getattr(exc, "errno", None) or errno.EIO)

    def damaged(self, dd: DiskDriver, sector: int, nb: int, reason: str) -> int:
        """Note damage; returns -EIO."""
        return content_damaged(dd, sector, nb, self._told(dd, reason))

    def _told(self, dd: DiskDriver, reason: str) -> str:
        """With the file, where that is not the disk's own."""
        path = self.map.file.path
        return reason if path == dd.name else f"its extent {path}: {reason}"

    # ---- what lies where ---------------------------------------------------------------------

    def runs(self, sector: int, nb: int) -> Iterator[tuple[int, int, int]]:
        """The runs of a range as (place, sector, sectors); waits for tables.

        A table that the directory hides is `DAMAGED`.
        """
        end = sector + nb
        while sector < end:
            at = sector - self.start
            index = at >> self._table_shift
            last = (end - self.start - 1) >> self._table_shift
            if empty := self.map.empty_tables(index, last + 1):
                count = min(((index + empty) << self._table_shift) - at, end - sector)
                yield HOLE, sector, count
                sector += count
                continue
            try:
                self.map.table(index)
                run = self.map.run(at, end - sector)
                assert run is not None
                place, count = run
            except ImageFormatError:
                place = DAMAGED
                count = (((at >> self._table_shift) + 1) << self._table_shift) - at
                count = min(count, end - sector)
            yield place, sector, count
            sector += count

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """From the tables; holes of the file within grains are zeroes too."""
        for place, first, count in self.runs(sector, nb):
            if place == HOLE:
                yield Extent(first, count, "unallocated")
            elif place == ZERO:
                yield Extent(first, count, "zero")
            elif place == DAMAGED:
                _, missing = why_damaged(self.map, first - self.start)
                yield Extent(first, count, "compressed", missing=missing)
            else:
                yield from self._data_extents(place, first, count)

    def _data_extents(self, place: int, sector: int, nb: int) -> Iterator[Extent]:
        return moved(self.map.file, sector, nb, place)

    def lost(self) -> Iterator[tuple[int, int]]:
        """By the grain tables."""
        return ((self.start + at, place) for at, place in lost_grains(self.map))

    def describe(self) -> dict[str, Any]:
        """For `info`."""
        return {**super().describe(), "grain_size": self.cluster}
