"""An open image: where its blocks lie, and where new ones go.

The order of writes: content; an entry of the log with the pages of the block table that change;
these pages in their place. A crash at any moment leaves the table as it was, or a log from which
it is made what it was to be.

A block of an image with a parent is stored whole once it is written: where only some of its sectors
were stored, it moves to a new place with all of them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, ClassVar, Final

from tap_vhdx.bat import (
    NOT_PRESENT,
    PARTIAL,
    PLACE,
    PRESENT,
    STATE,
    UNDEFINED,
    UNMAPPED,
    ZERO,
    Page,
)
from tap_vhdx.bits import is_set, same_bits_until
from tap_vhdx.headers import MIB
from tap_vhdx.items import Disk
from tap_vhdx.layout import Layout
from tap_vhdx.log import Log
from tap_vhdx.pages import Pages
from tap_vhdx.space import Space
from tap_vhdx.survey import survey
from tapcore import SECTOR_SHIFT, DiskDriver, ImageFile, ImageFormatError, NotSupportedError
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
    Write,
    rising_until,
    same_until,
)
from tapcore.clusters import ZERO as ZEROES

LARGEST_COPIED: Final = 32 * MIB
"""Bytes of a block of which all is read and written for its first sector, over a parent."""
_MOST_AGAIN: Final = 1 << 16
"""Blocks that there may be beyond those that the file has room for: it is damaged, but small."""


class Image(WritableTableMap[Page]):
    """An open image.

    Args:
        dd: the image in its chain.
        file: the image file.
        layout: of it.

    Attributes:
        layout: as given.
        pages: of the block table.
        log: of the file.
    """

    shows_holes: ClassVar[bool] = True
    reuses_space: ClassVar[bool] = True
    whole_clusters: ClassVar[bool] = True

    def __init__(self, dd: DiskDriver[Any], file: ImageFile, layout: Layout) -> None:
        disk = layout.disk
        super().__init__(file, disk.sectors, disk.block_size)
        self.layout = layout
        self.pages = Pages(file, layout)
        self.log = Log(file, layout.headers)
        page_shift = self.pages.geometry.page_shift
        self.table_shift = self.cluster_shift + page_shift
        self.table_bytes = self.pages.page_bytes
        memory = self.table_bytes + self.pages.bits_bytes
        self.tables = TableCache(file, self.read_table, memory, dd.options.metadata_cache)
        self._ratio_shift = self.pages.geometry.ratio_shift
        self._block_mask = (1 << self.cluster_shift) - 1
        self._page_mask = (1 << page_shift) - 1
        self._space = Space(file, disk.block_size, [], 0)
        self._given_up: list[int] = []
        self.clusters = WritableClusters(dd, self)

    @property
    def differs(self) -> bool:
        """Whether what is not stored here is its parent's."""
        return self.pages.differs

    # ---- where ------------------------------------------------------------------------------

    def table_place(self, index: int) -> int:
        return self.pages.place(index)

    def read_table(self, index: int, read: Read) -> Page | None:
        return self.pages.read(index, read)

    def empty_tables(self, index: int, stop: int) -> int:
        """As for every map with tables: a page in a hole says that nothing is stored."""
        return 0 if self.pages.covered(index, stop) else super().empty_tables(index, stop)

    def run_in(self, table: Page, sector: int, stop: int) -> Run:
        shift, ratio = self.cluster_shift, self._ratio_shift
        number = (sector >> shift) & self._page_mask
        at = number + (number >> ratio)
        entry = table.entries[at]
        state = entry & STATE
        if state == PARTIAL:
            return self._run_in_part(table, number, sector, stop)
        many = min(((stop - 1) >> shift) - (sector >> shift), (-number - 1) & ((1 << ratio) - 1))
        last = min(at + many + 1, len(table.entries))
        if state != PRESENT:
            kind = self._kind(entry, sector)
            until = same_until(table.entries, at, last)
            where = NOWHERE
        else:
            place = entry & PLACE
            block = self.layout.disk.block_size
            if not table.sound and self.pages.is_structure(place, block):
                raise ImageFormatError(f"has a block where none can be ({place:#x})")
            until = rising_until(table.entries, at, last, block) if table.sound else at + 1
            kind, where = DATA, place + ((sector & self._block_mask) << SECTOR_SHIFT)
        end = min((sector & ~self._block_mask) + ((until - at) << shift), stop)
        return Run(kind, sector, end - sector, where)

    def _kind(self, entry: int, sector: int) -> int:
        """Of a block that is not stored.

        Raises:
            ImageFormatError: there is no such state.
        """
        state = entry & STATE
        if state == NOT_PRESENT:
            return HOLE
        if state in (UNDEFINED, ZERO, UNMAPPED):
            return ZEROES
        block = sector >> self.cluster_shift
        raise ImageFormatError(f"has a block of an impossible state (block {block}: {state})")

    def _run_in_part(self, page: Page, number: int, sector: int, stop: int) -> Run:
        """Of a block of which some sectors are stored here, the others in the parent.

        What is stored is not to be written in its place: a write stores all of the block anew.
        """
        block = sector >> self.cluster_shift
        if not self.differs:
            text = f"has a block that is stored in part (block {block}), and no parent"
            raise ImageFormatError(text)
        if not page.bits:
            raise ImageFormatError(f"does not say which sectors of block {block} are stored")
        place = page.entries[number + (number >> self._ratio_shift)] & PLACE
        if self.pages.is_structure(place, self.layout.disk.block_size):
            raise ImageFormatError(f"has a block where none can be ({place:#x})")
        shift, skip = self.pages.bit_shift, sector & self._block_mask
        first = number << self.cluster_shift
        end = min(stop - sector + skip, self._block_mask + 1)
        bit = first + skip >> shift
        until = same_bits_until(page.bits, bit, first + end + (1 << shift) - 1 >> shift)
        end = min((until << shift) - first, end)
        if not is_set(page.bits, bit):
            return Run(HOLE, sector, end - skip)
        return Run(DATA, sector, end - skip, place + (skip << SECTOR_SHIFT), own=False)

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """As for every map with tables, of which no more are data than the file can hold."""
        left = (self.file.size // self.layout.disk.block_size + _MOST_AGAIN) << self.cluster_shift
        for run in super().runs(sector, stop):
            if run.kind == DATA:
                left -= run.nb_sectors
                if left < 0:
                    text = "is damaged: it has many more blocks than there is room for in the file"
                    raise ImageFormatError(text, errno=errno.EIO)
            yield run

    def place(self, sector: int, nb_sectors: int) -> int:
        """Inside one block that is stored whole."""
        skip = sector & self._block_mask
        page = self.tables.young.get(sector >> self.table_shift)
        if page is None or skip + nb_sectors > self._block_mask + 1:
            return ASK
        number = (sector >> self.cluster_shift) & self._page_mask
        entry = page.entries[number + (number >> self._ratio_shift)]
        if entry & STATE == PRESENT and page.sound:
            return (entry & PLACE) + (skip << SECTOR_SHIFT)
        return NOWHERE if entry & STATE == NOT_PRESENT else ASK

    def place_to_write(self, sector: int, nb_sectors: int) -> int:
        """The same; also in several blocks side by side."""
        place = self.place(sector, nb_sectors)
        if place >= 0:
            return place
        return ASK if place == NOWHERE else super().place_to_write(sector, nb_sectors)

    # ---- what changes -----------------------------------------------------------------------

    def begin_writing(self) -> None:
        """No two blocks share a place; and all children learn that it has changed.

        Raises:
            NotSupportedError, ImageFormatError: it can only be read.
            OSError: as the system says.
        """
        block = self.layout.disk.block_size
        if self.differs and block > LARGEST_COPIED:
            raise NotSupportedError(
                f"has a parent, and blocks of {block >> 20} MiB, which would be copied whole: it "
                "can only be read"
            )
        found = survey(self.pages)
        if not found.whole:
            raise ImageFormatError(f"{found.said[0]}; it can only be read until it is repaired")
        self._space = Space(self.file, block, found.gaps, found.end)
        self.log.begin()

    def allocate(self, sector: int, count: int) -> Place:
        """In a gap, or behind all others."""
        where, clusters, blank = self._space.take(count)
        return Place(where, clusters, blank=blank and not self._in_part(sector))

    def _in_part(self, sector: int) -> bool:
        """Whether some of a block is stored elsewhere, and has to come along."""
        if not self.differs:
            return False
        page = self.tables.wait(sector >> self.table_shift)
        number = (sector >> self.cluster_shift) & self._page_mask
        return page.entries[number + (number >> self._ratio_shift)] & STATE == PARTIAL

    def give_back(self, where: int, count: int) -> None:
        """It holds something: it must be a hole before it is given out again."""
        length = count * self.layout.disk.block_size

        def punched(res: int) -> int:
            if not res:
                self._space.add(where, length)
            return 0

        self.file.queue_work(lambda: self.file.discard_blocking(where, length), punched)

    def link(self, sector: int, stop: int, where: int) -> None:
        block = self.layout.disk.block_size
        first, end = sector >> self.cluster_shift, -(-stop >> self.cluster_shift)
        entries = range(where | PRESENT, (where | PRESENT) + (end - first) * block, block)
        self._enter(first, entries)

    def _enter(self, first: int, entries: range | list[int]) -> None:
        """Let blocks of one page have these entries; where they were is given up."""
        page = self.tables.wait(first << self.cluster_shift >> self.table_shift)
        ratio = self._ratio_shift
        for number, entry in enumerate(entries, first & self._page_mask):
            at = number + (number >> ratio)
            old = page.entries[at]
            if old & STATE in (PRESENT, PARTIAL) and old & PLACE != entry & PLACE:
                self._given_up.append(old & PLACE)
            self.tables.set_one(page, at, entry)

    def clear(self, run: Run, *, discard: bool, may_unmap: bool) -> int:
        """Blocks get a state in which they are zeroes, and their place is given up.

        Of a fixed image each keeps its place: holes are made there.
        """
        if not (discard or may_unmap) or (run.kind == DATA and self.layout.disk.fixed):
            return -errno.EOPNOTSUPP
        if run.kind == ZEROES or (run.kind == HOLE and not self.differs):
            return 0
        first, end = run.sector >> self.cluster_shift, -(-run.end >> self.cluster_shift)
        self._enter(first, [UNMAPPED if discard else ZERO] * (end - first))
        return 0

    def picture(self) -> Picture:
        taken = self.tables.take()
        given_up, self._given_up = self._given_up, []
        block, end = self.layout.disk.block_size, self._space.end
        rounds = self.log.rounds(taken.changed, end)
        stages: list[list[Write]] = [[]] if rounds else []
        for each in rounds:
            stages += [[each.entry], each.pages]

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 1)
            self.log.wrote(rounds, (failed - 1) // 2 if failed else len(rounds))
            if failed:
                self._given_up += given_up

        def free() -> None:
            for where in given_up:
                self._space.add(where, block)

        holes = [(where, block) for where in given_up]
        return Picture(stages, conclude, end, holes, free if given_up else None)

    def adopt(self, disk: Disk) -> None:
        """Go by this from now on, which is in the file: the disk has become larger."""
        self.layout.disk, self.sectors = disk, disk.sectors
        self.pages = Pages(self.file, self.layout)
        self.tables.forget()
        self.clusters.stop_writing()

    def close(self) -> None:
        """Save, let the log be empty, and release all.

        Raises:
            OSError, TapError: not everything could be saved.
        """
        try:
            self.clusters.save()
            self.log.end()
        finally:
            self.clusters.close()
