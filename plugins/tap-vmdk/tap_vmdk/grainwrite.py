"""Writing sparse files: in place, or into new grains at the end of the file.

An entry of a table is changed in memory when its grain is written, and on disk with the next
flush, after what it points to. So whatever a crash leaves, an entry on disk points to content.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs

from tap_vmdk.descriptor import ExtentLine
from tap_vmdk.grains import DAMAGED, HOLE, ZERO, GrainMap, raw32, round_up
from tap_vmdk.parts import Save
from tap_vmdk.sparse import UNCLEAN_OFFSET, SparseHeader
from tap_vmdk.sparseparts import SparsePart
from tapcore import DiskDriver, TapError, TdCallback

_STEPS: Final = 256
"""Runs that a discard or zeroing looks at before it lets others have their turn."""
_LAST_SECTOR: Final = 1 << 32
"""An entry has 32 bits."""


@attrs.define(eq=False)
class Allocation:
    """New grains that are being written.

    Attributes:
        first: sector in the first grain, of the file's disk.
        grains: how many.
        place: sector of the file where they begin.
        waiting: what wants to go on when they are there.
    """

    first: int
    grains: int
    place: int
    waiting: list[Callable[[], int]] = attrs.field(factory=list)


class WritablePart(SparsePart):
    """A sparse file that is written.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        map: of its grains.
        header: of the file.
    """

    def __init__(self, line: ExtentLine, start: int, map: GrainMap, header: SparseHeader) -> None:
        super().__init__(line, start, map)
        self.writable = True
        self.unit = map.file.sector_size
        self.header = header
        self._write_now = map.file.write_now
        self._busy: dict[int, Allocation] = {}  # by grain
        self._new_tables: set[int] = set()  # whose directory entries are not on disk yet
        self._saving: tuple[set[int], set[int]] = (set(), set())
        map.end = max(map.end, round_up(min(header.overhead, 1 << 16), map.layout.grain))

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
            busy = self._busy.get(at >> self._grain_shift)
            if busy is not None:
                count = min(self._grain - (at & self._grain_mask), nb)
                part = buf[: count << 9]
                again = partial(self._write_runs, dd, sector, count, part, cb, id, prv)
                busy.waiting.append(again)
            else:
                try:
                    run = self.map.run(at, nb)
                except (TapError, OSError) as exc:
                    return finished + cb(dd, -self._failed(exc), sector, nb, id, prv)
                if run is None:
                    state = (self._write_runs, buf, cb, prv)
                    self._load(dd, sector, nb, self._table_is_there, id, state)
                    return finished
                place, count = run
                if place > ZERO:
                    part = buf[: count << 9]
                    finished += self._write_data(dd, place, sector, count, part, cb, id, prv)
                elif place == DAMAGED:
                    finished += cb(dd, -errno.EIO, sector, count, id, prv)
                else:
                    count = self._not_busy(at, count)
                    part = buf[: count << 9]
                    finished += self._write_new(dd, place, sector, count, part, cb, id, prv)
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished

    def _not_busy(self, at: int, count: int) -> int:
        """How many sectors lie before the first grain that is being written."""
        if not self._busy:
            return count
        first, last = at >> self._grain_shift, (at + count - 1) >> self._grain_shift
        for grain in range(first + 1, last + 1):
            if grain in self._busy:
                return (grain << self._grain_shift) - at
        return count

    # ---- new grains -------------------------------------------------------------------------

    def _write_new(
        self,
        dd: DiskDriver,
        kind: int,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Write sectors of grains, all in one table, that are holes or zeroes until now."""
        at = sector - self.start
        try:
            new = self._allocate(at, nb)
        except (TapError, OSError) as exc:
            return cb(dd, -self._failed(exc), sector, nb, id, prv)
        skip = at - new.first
        size = new.grains * self._grain
        whole = not skip and nb >= min(size, self.end - self.start - new.first)
        answer = (dd, sector, nb, id, (new, cb, prv))
        if kind == HOLE and dd.next is not None and not whole:
            self._copy_around(dd, new, skip, buf, answer)
            return 0
        try:
            if nb < size:  # what is not written reads as zeroes: it lies in a hole of the file
                self.map.file.truncate_up((new.place + size) << 9)
        except OSError as exc:
            return self._stored(dd, -self._failed(exc), sector, nb, id, (new, cb, prv))
        return self._store(new, skip, buf, answer)

    def _allocate(self, at: int, nb: int) -> Allocation:
        """Reserve grains at the end of the file for a run of sectors."""
        index = at >> self._table_shift
        if index not in self._tables or not self.map.whole_directories:
            raise OSError(errno.EIO, "the grain tables are damaged")
        self._need_table(index)
        first, last = at >> self._grain_shift, (at + nb - 1) >> self._grain_shift
        grains = last - first + 1
        new = Allocation(first << self._grain_shift, grains, self.take(grains * self._grain))
        for grain in range(first, last + 1):
            self._busy[grain] = new
        self.map.pinned += 1
        return new

    def take(self, sectors: int) -> int:
        """Space at the end of the file.

        Args:
            sectors: whole grains.

        Returns:
            Its first sector.

        Raises:
            OSError: an entry could not point there.
        """
        place, end = self.map.end, self.map.end + sectors
        if end > _LAST_SECTOR:
            raise OSError(errno.EFBIG, "the file would exceed 2 TiB")
        self.map.end = end
        return place

    def _need_table(self, index: int) -> None:
        """See to it that a table has its place in the file, in both directories."""
        directory, spare = self.map.directory, self.map.spare
        if directory[index]:
            if not self.map.table_at(directory[index]):
                raise OSError(errno.EIO, "the grain directory is damaged")
            return
        sectors = self.header.table_sectors
        size = round_up(sectors if spare is None else 2 * sectors, self._grain)
        place = self.take(size)
        # until the next flush, and after a crash, an empty table lies there
        self.map.file.truncate_up((place + size) << 9)
        directory[index] = place
        if spare is not None:
            spare[index] = place + sectors
        self._new_tables.add(index)

    def _copy_around(
        self,
        dd: DiskDriver,
        new: Allocation,
        skip: int,
        buf: memoryview,
        answer: tuple[Any, ...],
    ) -> None:
        """Fill what is not written of the new grains with what the parent holds there."""
        sectors = new.grains * self._grain
        content = memoryview(bytearray(sectors << 9))
        head = content[: skip << 9]
        tail_at = skip + (len(buf) >> 9)
        end = min(self.end - self.start - new.first, sectors)  # the disk may end in the grain
        tail = content[tail_at << 9 : end << 9]
        base = self.start + new.first
        wanted = [(s, b) for s, b in ((base, head), (base + tail_at, tail)) if len(b)]
        left, status = len(wanted), 0

        def copied(request: Any) -> None:
            nonlocal left, status
            left -= 1
            status = status or request.status
            if left:
                return
            if status:
                _, sector, nb, id, prv = answer
                self._stored(dd, status, sector, nb, id, prv)
            else:
                content[skip << 9 : tail_at << 9] = buf
                self._store(new, 0, content, answer)
            self.map.file.submit()  # this is no batch of the core's

        assert dd.td_state is not None
        assert dd.td_state.blkif is not None
        for sector, part in wanted:
            dd.td_state.blkif.read_below(dd, sector, part, copied)

    def _store(
        self, new: Allocation, skip: int, content: memoryview, answer: tuple[Any, ...]
    ) -> int:
        """Write the content of new grains, from a sector of them on."""
        offset = (new.place + skip) << 9
        res = self._write_now(offset, content)
        dd, sector, nb, id, prv = answer
        if res is None:
            return self.map.file.queue_write(
                offset, content, (self._stored, dd, sector, nb, id, prv)
            )
        return self._stored(dd, res, sector, nb, id, prv)

    def _stored(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
    ) -> int:
        """The grains are written, or it failed; those that waited for it go on."""
        new, cb, mine = prv
        self.map.pinned -= 1
        first = new.first >> self._grain_shift
        for grain in range(first, first + new.grains):
            del self._busy[grain]
        if res == 0:
            self.map.set_entries(new.first, new.place, new.grains)
        finished: int = cb(dd, res, sector, nb, id, mine)
        for again in new.waiting:
            finished += again()
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
            busy = self._busy.get(at >> self._grain_shift)
            if busy is not None:
                busy.waiting.append(partial(self._clear, dd, 0, sector, nb, id, prv))
                return finished
            try:
                run = self.map.run(at, nb)
            except (TapError, OSError) as exc:
                return finished + int(cb(dd, -self._failed(exc), sector, nb, id, mine))
            if run is None:
                self._load(dd, sector, nb, self._clear, id, prv)
                return finished
            place, count = run
            if place > ZERO:
                self._clear_data(dd, place, sector, count, nb - count, id, prv)
                return finished
            if place == DAMAGED:
                finished += cb(dd, -errno.EIO, sector, count, id, mine)
            else:
                count = self._not_busy(at, count)
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
            self._need_table(at >> self._table_shift)
        except OSError as exc:
            return -self._failed(exc)
        self.map.set_entries(at, ZERO, -(-nb // self._grain))
        return 0

    # ---- metadata ---------------------------------------------------------------------------

    def begin_writing(self) -> None:
        """Say in the header that the file is in use, as VMware does."""
        self.map.file.write_metadata(UNCLEAN_OFFSET, b"\1")

    def finish(self) -> None:
        """Say in the header that the file was closed."""
        self.map.file.write_metadata(UNCLEAN_OFFSET, b"\0")

    def unsaved(self) -> Save | None:
        """The changed tables and directory entries, as they are now."""
        tables, new = self.map.unsaved, self._new_tables
        if not tables and not new:
            return None
        self._saving = (tables, new)
        self.map.unsaved, self._new_tables = set(), set()
        self.map.pinned += 1
        pieces: list[tuple[int, bytes]] = []
        offsets = self.map.layout.directories
        for offset, directory in zip(offsets, (self.map.directory, self.map.spare), strict=False):
            if directory is None:
                continue
            for index in sorted(tables):
                if self.map.table_at(directory[index]):
                    pieces.append((directory[index] << 9, raw32(self._tables[index])))
            for index in sorted(new):
                pieces.append((offset + 4 * index, directory[index].to_bytes(4, "little")))
        return partial(self._save, pieces)

    def _save(self, pieces: list[tuple[int, bytes]]) -> int:
        for offset, content in pieces:
            self.map.file.write_metadata(offset, content)
        return 0

    def saved(self, ok: bool) -> None:
        """Tables may be dropped from memory again; or they have to be saved once more."""
        self.map.pinned -= 1
        tables, new = self._saving
        self._saving = (set(), set())
        if not ok:
            self.map.unsaved |= tables
            self._new_tables |= new

    def make_empty(self) -> None:
        """Turn every grain into a hole, on disk when this returns.

        Raises:
            OSError: as the system says.
        """
        file, layout = self.map.file, self.map.layout
        end = max(self.header.overhead, layout.first_grain)
        for offset, directory in zip(
            layout.directories, (self.map.directory, self.map.spare), strict=False
        ):
            end = max(end, (offset + layout.directory_bytes + 511) >> 9)
            for place in directory or ():
                if place and self.map.table_at(place):
                    file.write_metadata(place << 9, bytes(layout.table_bytes))
                    end = max(end, place + self.header.table_sectors)
        self.map.forget_all()
        self.map.unsaved.clear()
        res = file.flush_blocking()
        if res:
            raise OSError(-res, "the flush failed")
        end = round_up(end, self._grain)
        if file.size > end << 9:
            file.resize(end << 9)
        self.map.end = end
        res = file.flush_blocking()
        if res:
            raise OSError(-res, "the flush failed")
