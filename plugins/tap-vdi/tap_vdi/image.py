"""An open image: where its blocks lie, and where new ones go.

Places are given out one after the other, and none is ever taken back: what is zeroed or discarded
becomes a hole of the file, where it is. So a block that has a place is written in place for ever,
and no other program, all of which put new blocks behind as many places as the header counts, finds
a gap. `check --repair` drops blocks that hold nothing any more.

The order of writes: content, and how many places are given out; then the block map.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

from tap_vdi.blockmap import (
    CODING,
    FREE,
    PAGE_BYTES,
    PAGE_SHIFT,
    ZERO,
    Page,
    PlaceVisits,
    page_place,
)
from tap_vdi.header import MODIFIED_AT, PARENT_MODIFIED_AT, STORED_AT, Header
from tap_vdi.scan import scan
from tapcore import SECTOR_SHIFT, DiskDriver, ImageFile, ImageFormatError
from tapcore.clusters import (
    ASK,
    DATA,
    HOLE,
    NOWHERE,
    Picture,
    Place,
    Read,
    Run,
    TableCache,
    WritableClusters,
    WritableTableMap,
    rising_until,
    same_until,
)
from tapcore.clusters import ZERO as ZEROES

_IN_PAGE: Final = (1 << PAGE_SHIFT) - 1


class Image(WritableTableMap[Page]):
    """An open image.

    Args:
        dd: the image in its chain.
        file: the image file.
        header: of it.

    Attributes:
        header: as it was when the image was opened.
        modified: the UUID of its last change, now.
        parent_modified: what it goes by to tell a changed parent.
        stored: places that are given out.
        recorded: what the header in the file counts; -1: not known.
        changed: its children know already that it is not what it was.
    """

    shows_holes: ClassVar[bool] = True
    whole_clusters: ClassVar[bool] = True
    zeroes_say_nothing: ClassVar[bool] = False

    def __init__(self, dd: DiskDriver[Any], file: ImageFile, header: Header) -> None:
        super().__init__(file, header.sectors, header.block_size)
        self.header = header
        self.modified = header.modified
        self.parent_modified = header.parent_modified
        self.table_shift = self.cluster_shift + PAGE_SHIFT
        self.table_bytes = PAGE_BYTES
        self.tables = TableCache(file, self.read_table, PAGE_BYTES, dd.options.metadata_cache)
        self._mask = (1 << self.cluster_shift) - 1
        self._first = header.where(0)
        self._step = header.place_bytes
        self.stored = header.stored
        self.recorded = header.stored
        self._spare: list[int] = []
        self._gaps: Iterator[int] = iter(())
        self._blank_from = 0
        self.changed = False
        self.clusters = WritableClusters(dd, self)

    # ---- where ------------------------------------------------------------------------------

    def table_place(self, index: int) -> int:
        return page_place(self.header, index)[0]

    def read_table(self, index: int, read: Read) -> Page | None:
        place, length = page_place(self.header, index)
        content = read(place, length)
        return None if content is None else Page(index, place, CODING.decode(content), CODING)

    def run_in(self, table: Page, sector: int, stop: int) -> Run:
        shift, entries = self.cluster_shift, table.entries
        at = (sector >> shift) & _IN_PAGE
        last = min(at + ((stop - 1) >> shift) - (sector >> shift) + 1, len(entries))
        entry = entries[at]
        if entry >= ZERO:
            until = same_until(entries, at, last)
        else:
            until = at + 1 if self.header.extra else rising_until(entries, at, last)
        end = min((sector & ~self._mask) + ((until - at) << shift), stop)
        if entry >= ZERO:
            return Run(HOLE if entry == FREE else ZEROES, sector, end - sector)
        where = self._first + entry * self._step + ((sector & self._mask) << SECTOR_SHIFT)
        return Run(DATA, sector, end - sector, where)

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """As for every map with tables, of which no more are data than the file can hold."""
        visits = PlaceVisits(self.header, self.file.size)
        for run in super().runs(sector, stop):
            if run.kind == DATA:
                visits.visit(-(-run.nb_sectors >> self.cluster_shift))
            yield run

    def place(self, sector: int, nb_sectors: int) -> int:
        """Inside one block."""
        skip = sector & self._mask
        page = self.tables.young.get(sector >> self.table_shift)
        if page is None or skip + nb_sectors > self._mask + 1:
            return ASK
        entry = page.entries[(sector >> self.cluster_shift) & _IN_PAGE]
        if entry < ZERO:
            return self._first + entry * self._step + (skip << SECTOR_SHIFT)
        return NOWHERE if entry == FREE else ASK

    def place_to_write(self, sector: int, nb_sectors: int) -> int:
        """The same; also in several blocks side by side."""
        place = self.place(sector, nb_sectors)
        if place >= 0:
            return place
        return ASK if place == NOWHERE else super().place_to_write(sector, nb_sectors)

    def adopt(self, header: Header) -> None:
        """Take another size, and other places of the map and the blocks; all of it is on disk."""
        self.header = header
        self.sectors = header.sectors
        self._first = header.where(0)
        self.stored = self.recorded = header.stored
        self.tables.forget()
        self.clusters.stop_writing()

    # ---- what changes -----------------------------------------------------------------------

    def begin_writing(self) -> None:
        """No two blocks share a place; and all children learn that it has changed.

        Raises:
            ImageFormatError: it can only be read.
            OSError: as the system says.
        """
        self._see_places()
        if not self.changed:
            self.record_change(uuid4())

    def _see_places(self) -> None:
        """Which places are given out, and which of them nothing lies in."""
        found = scan(self.header, self.file)
        if not found.whole:
            raise ImageFormatError(f"{found.said[0]}; it can only be read until it is repaired")
        self.stored = found.end
        self._spare, self._gaps = [], gaps(found.used, found.end)
        self._blank_from = self.file.size

    def record_change(self, modified: UUID) -> None:
        """Take another UUID of the last change, on disk when this returns.

        Raises:
            OSError: as the system says.
        """
        self.record(MODIFIED_AT, modified)
        self.modified, self.changed = modified, True

    def record_parent_change(self, modified: UUID) -> None:
        """The parent has, or is to have, this UUID of its last change; raises as the other."""
        self.record(PARENT_MODIFIED_AT, modified)
        self.parent_modified = modified

    def record(self, at: int, *ids: UUID) -> None:
        """Write UUIDs into the header, on disk when this returns."""
        self.file.write_metadata(at, b"".join(each.bytes_le for each in ids))
        self.file.make_safe()

    def allocate(self, sector: int, count: int) -> Place:
        """A place that was lost in a crash, or those behind all others."""
        spare = self._spare.pop() if self._spare else next(self._gaps, None)
        if spare is not None:
            return Place(self.header.where(spare), 1)
        count = 1 if self.header.extra else count
        place, self.stored = self.stored, self.stored + count
        where = self.header.where(place)
        return Place(where, count, blank=where >= self._blank_from)

    def give_back(self, where: int, count: int) -> None:
        """For the next ones that are wanted."""
        first = (where - self._first) // self._step
        self._spare += range(first, first + count)

    def link(self, sector: int, stop: int, where: int) -> None:
        first, end = sector >> self.cluster_shift, -(-stop >> self.cluster_shift)
        page = self.tables.wait(first >> PAGE_SHIFT)
        place = (where - self._first) // self._step
        self.tables.set(page, first & _IN_PAGE, range(place, place + end - first))

    def clear(self, run: Run, *, discard: bool, may_unmap: bool) -> int:
        """Holes over a parent are marked; blocks become holes of the file, where they are."""
        if run.kind == DATA or not (discard or may_unmap):
            return -errno.EOPNOTSUPP
        if run.kind == HOLE and self.header.differs:
            first, end = run.sector >> self.cluster_shift, -(-run.end >> self.cluster_shift)
            page = self.tables.wait(first >> PAGE_SHIFT)
            self.tables.set(page, first & _IN_PAGE, [ZERO] * (end - first))
        return 0

    def picture(self) -> Picture:
        taken, stored = self.tables.take(), self.stored
        count = [(STORED_AT, stored.to_bytes(4, "little"))] if stored != self.recorded else []

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 1)
            self.recorded = -1 if failed else stored

        return Picture([count, taken.changed], conclude)


def gaps(used: bytearray, end: int) -> Iterator[int]:
    """The places before `end` that nothing lies in."""
    place = used.find(0, 0, end)
    while place >= 0:
        yield place
        place = used.find(0, place + 1, end)
