"""New grains: space at the end of the file, their content, and then their entries."""

from __future__ import annotations

from typing import Any

from tap_vmdk.grains.busy import BusyGrains, BusyRun
from tap_vmdk.grains.lookup import Grains
from tap_vmdk.grains.tables import TableStore
from tap_vmdk.sparse.entries import HOLE
from tapcore import DiskDriver, TapError, TdCallback

_Answer = tuple[DiskDriver, int, int, int, Any]
"""`dd, sector, nb, id`, and what `_stored` needs besides."""


class NewGrains:
    """Writes grains of a part for the first time.

    Args:
        grains: of the part.
        tables: of the file.
        busy: the grains on their way.
    """

    def __init__(self, grains: Grains, tables: TableStore, busy: BusyGrains) -> None:
        self._grains = grains
        self._map = grains.map
        self._file = grains.file
        self._tables = tables
        self._busy = busy

    def write(
        self,
        kind: int,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Write sectors of grains, all in one table, that are holes or zeroes (`kind`) until now;
        none of them is busy."""
        grains = self._grains
        at = sector - grains.start
        try:
            new = self._allocate(at, nb)
        except (TapError, OSError) as exc:
            return cb(dd, grains.failed(exc, dd, sector, nb), sector, nb, id, prv)
        first, size = new.first << grains.grain_shift, new.grains * grains.grain
        skip = at - first
        whole = not skip and nb >= min(size, grains.end - grains.start - first)
        answer = (dd, sector, nb, id, (new, cb, prv))
        if kind == HOLE and dd.next is not None and not whole:
            self._copy_around(new, skip, buf, answer)
            return 0
        try:
            if nb < size:  # what is not written reads as zeroes: it lies in a hole of the file
                self._file.truncate_up((new.place + size) << 9)
        except OSError as exc:
            return self._stored(
                dd, grains.failed(exc, dd, sector, nb), sector, nb, id, (new, cb, prv)
            )
        return self._store(new, skip, buf, answer)

    def _allocate(self, at: int, nb: int) -> BusyRun:
        """Reserve grains at the end of the file for a run of sectors."""
        grains = self._grains
        self._tables.need_table(at >> grains.table_shift)
        count = ((at + nb - 1) >> grains.grain_shift) - (at >> grains.grain_shift) + 1
        new = self._busy.add(at, nb, self._tables.take(count * grains.grain))
        self._map.pinned += 1
        return new

    def _copy_around(self, new: BusyRun, skip: int, buf: memoryview, answer: _Answer) -> None:
        """Fill what is not written of the new grains with what the parent holds there."""
        grains = self._grains
        dd, sector, nb, id, prv = answer
        size, base = new.grains * grains.grain, sector - skip
        content = memoryview(bytearray(size << 9))
        end = min(grains.end - base, size)  # the disk may end in the grain
        head, tail = content[: skip << 9], content[(skip + nb) << 9 : end << 9]
        wanted = [(s, b) for s, b in ((base, head), (sector + nb, tail)) if len(b)]
        left, status = len(wanted), 0

        def copied(request: Any) -> None:
            nonlocal left, status
            left -= 1
            status = status or request.status
            if left:
                return
            if status:
                self._stored(dd, status, sector, nb, id, prv)
            else:
                content[skip << 9 : (skip + nb) << 9] = buf
                self._store(new, 0, content, answer)
            self._file.submit()  # this is no batch of the core's

        assert dd.td_state is not None
        assert dd.td_state.blkif is not None
        for first, part in wanted:
            dd.td_state.blkif.read_below(dd, first, part, copied)

    def _store(self, new: BusyRun, skip: int, content: memoryview, answer: _Answer) -> int:
        """Write the content of new grains, from a sector of them on."""
        offset = (new.place + skip) << 9
        res = self._file.write_now(offset, content)
        dd, sector, nb, id, prv = answer
        if res is None:
            return self._file.queue_write(offset, content, (self._stored, *answer))
        return self._stored(dd, res, sector, nb, id, prv)

    def _stored(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
    ) -> int:
        """The grains are written, or it failed; those that waited for it go on."""
        new, cb, mine = prv
        self._map.pinned -= 1
        self._busy.release(new)
        if res == 0:
            self._map.set_entries(new.first << self._grains.grain_shift, new.place, new.grains)
        finished: int = cb(dd, res, sector, nb, id, mine)
        for again in new.waiting:
            finished += again()
        return finished
