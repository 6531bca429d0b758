"""Reading grains that are stored plain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tap_vmdk.grains.lookup import Grains
from tap_vmdk.grains.runs import RunReader
from tap_vmdk.movers import file_extents
from tapcore import DiskDriver, Extent, TdCallback


class PlainReader:
    """Reads a part.

    Args:
        grains: of the part.
    """

    def __init__(self, grains: Grains) -> None:
        self._grains = grains
        self._runs = RunReader(grains, self._read_data)
        # what the path of a request needs, without a detour
        self._start = grains.start
        self._tables = grains.map.tables
        self._table_shift = grains.table_shift
        self._grain_shift = grains.grain_shift
        self._grain_mask = grains.grain_mask
        self._entry_mask = grains.entry_mask
        self._grain = grains.grain
        self._file = grains.file
        self._read_now = grains.file.read_now

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
        """A part of one grain that the page cache holds is read here, all else run by run."""
        at = sector - self._start
        table = self._tables.get(at >> self._table_shift)
        if table is not None:
            skip = at & self._grain_mask
            if skip + nb <= self._grain:
                place = table[(at >> self._grain_shift) & self._entry_mask]
                if place > 1:
                    offset = (place + skip) << 9
                    res = self._read_now(offset, buf)
                    if res is None:
                        return self._file.queue_read(offset, buf, (cb, dd, sector, nb, id, prv))
                    return cb(dd, res, sector, nb, id, prv)
        return self._runs.read(dd, sector, nb, buf, cb, id, prv)

    def _read_data(
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
        res = self._read_now(place << 9, buf)
        if res is None:
            return self._file.queue_read(place << 9, buf, (cb, dd, sector, nb, id, prv))
        return cb(dd, res, sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """From the tables; holes of the file within grains are zeroes too."""

        def data(place: int, sector: int, nb: int) -> Iterator[Extent]:
            return file_extents(self._grains.file, sector, nb, place)

        return self._grains.extents(sector, nb, data)
