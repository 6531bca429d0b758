"""Writing grains that are stored plain: in place, or into new ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from tap_vmdk.grains.busy import BusyGrains, BusyRun
from tap_vmdk.grains.clear import Clearer
from tap_vmdk.grains.lookup import Grains
from tap_vmdk.grains.new import NewGrains
from tap_vmdk.grains.tables import TableStore
from tap_vmdk.movers import Save, Writer
from tap_vmdk.sparse.entries import ZERO
from tap_vmdk.sparse.grainmap import DAMAGED, DAMAGED_TABLE
from tap_vmdk.sparse.header import UNCLEAN_OFFSET, SparseHeader
from tapcore import DiskDriver, ImageFormatError, TapError, TdCallback

_DAMAGED: Final = ImageFormatError(DAMAGED_TABLE)


class GrainWriter(Writer):
    """Writes a part.

    Args:
        grains: of the part.
        header: of the file.

    Attributes:
        map: of the file's grains.
        header: as given.
        tables: on disk.
    """

    writable = True

    def __init__(self, grains: Grains, header: SparseHeader) -> None:
        self.map = grains.map
        self.header = header
        self.tables = TableStore(grains.map, header)
        self._grains = grains
        self._file = grains.file
        self._busy = BusyGrains(grains.grain_shift)
        self._new = NewGrains(grains, self.tables, self._busy)
        self._clearer = Clearer(grains, self.tables, self._busy)
        # what the path of a request needs, without a detour
        self._start = grains.start
        self._in_memory = grains.map.tables
        self._table_shift = grains.table_shift
        self._grain_shift = grains.grain_shift
        self._grain_mask = grains.grain_mask
        self._entry_mask = grains.entry_mask
        self._grain = grains.grain
        self._write_now = grains.file.write_now

    # ---- requests ---------------------------------------------------------------------------

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
        at = sector - self._start
        table = self._in_memory.get(at >> self._table_shift)
        if table is not None:
            skip = at & self._grain_mask
            if skip + nb <= self._grain:
                place = table[(at >> self._grain_shift) & self._entry_mask]
                if place > 1:
                    return self._write_data(place + skip, dd, sector, nb, buf, cb, id, prv)
        return self._write_runs(dd, sector, nb, buf, cb, id, prv)

    def _write_data(
        self,
        place: int,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        res = self._write_now(place << 9, buf)
        if res is None:
            return self._file.queue_write(place << 9, buf, (cb, dd, sector, nb, id, prv))
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
            busy = self._busy.run_of(sector - self._start)
            if busy is not None:
                count = self._write_later(busy, dd, sector, nb, buf, cb, id, prv)
            else:
                try:
                    run = self._grains.run(sector, nb)
                except (TapError, OSError) as exc:
                    res = self._grains.failed(exc, dd, sector, nb)
                    return finished + cb(dd, res, sector, nb, id, prv)
                if run is None:
                    self._grains.load_and(self._write_runs, dd, sector, nb, buf, cb, id, prv)
                    return finished
                count, done = self._write_run(*run, dd, sector, buf, cb, id, prv)
                finished += done
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished

    def _write_later(
        self,
        busy: BusyRun,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """What lies in a busy grain waits for it; returns how many sectors."""
        count = min(self._grain - ((sector - self._start) & self._grain_mask), nb)
        part = buf[: count << 9]
        busy.waiting.append(partial(self._write_runs, dd, sector, count, part, cb, id, prv))
        return count

    def _write_run(
        self,
        place: int,
        count: int,
        dd: DiskDriver,
        sector: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> tuple[int, int]:
        """Write a run, or as much of it as is not busy: (sectors, requests finished)."""
        at = sector - self._start
        if place > ZERO and self.map.writable(at, place, count):
            part = buf[: count << 9]
            return count, self._write_data(place, dd, sector, count, part, cb, id, prv)
        if place == DAMAGED or place > ZERO:
            res = self._grains.failed(_DAMAGED, dd, sector, count)
            return count, cb(dd, res, sector, count, id, prv)
        count = self._busy.free(at, count)
        part = buf[: count << 9]
        return count, self._new.write(place, dd, sector, count, part, cb, id, prv)

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
        return self._clearer.zero(dd, sector, nb, may_unmap, cb, id, prv)

    def discard(
        self, dd: DiskDriver, sector: int, nb: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """Grains that are there become holes of the file, and read as zeroes."""
        return self._clearer.discard(dd, sector, nb, cb, id, prv)

    # ---- metadata ---------------------------------------------------------------------------

    def lost(self) -> Iterator[tuple[int, int]]:
        """By the grain tables."""
        return self._grains.lost()

    def keep_free(self, end: int) -> None:
        """What lies there becomes a hole of the file, as it reads anyway; new grains go behind."""
        self._file.truncate_up(end << 9)
        self.map.file_grew()

    def begin(self) -> None:
        """Say in the header that the file is in use, as VMware does."""
        self._file.write_metadata(UNCLEAN_OFFSET, b"\1")

    def finish(self) -> None:
        """Say in the header that the file was closed."""
        self._file.write_metadata(UNCLEAN_OFFSET, b"\0")

    def unsaved(self) -> Save | None:
        """The changed tables and directory entries."""
        return self.tables.unsaved()

    def saved(self, ok: bool) -> None:
        """See `TableStore.saved`."""
        self.tables.saved(ok)
