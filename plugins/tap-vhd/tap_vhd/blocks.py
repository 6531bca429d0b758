"""Dynamic and differencing images: blocks, each behind a bitmap of its sectors.

A sector whose bit is set lies in the block. Any other is the parent's, or reads as zeroes. The
block table says where bitmaps lie; it stays in memory, and the bitmaps come and go.

The order of writes: content; new bitmaps; then bitmaps that have changed, and the block table. The
footer is written behind a new block before anything else of it. Only a loss of power can let the
file end with content then, which might look like a footer: see `footers`.
"""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any, ClassVar, Final

from tap_vhd.bits import all_set, is_set, same_until, with_ones, with_zeroes
from tap_vhd.footer import DIFFERENCING
from tap_vhd.footers import Footers
from tap_vhd.header import UNUSED, Header
from tap_vhd.parentnames import recorded_names
from tapcore import SECTOR_SHIFT, DiskDriver, ImageFile, ImageFormatError
from tapcore.clusters import (
    ASK,
    DATA,
    HOLE,
    NOWHERE,
    Coding,
    Numbers,
    Picture,
    Place,
    Read,
    Run,
    Table,
    TableCache,
    WritableClusters,
    WritableTableMap,
)

_BITS: Final = Coding("B")
_SECTORS: Final = Coding("I", "big")
_PAGE: Final = 4096
_MOST_BLOCKS_END: Final = UNUSED << SECTOR_SHIFT


class BlockTable(Table):
    """Where each bitmap begins, in sectors."""

    block_shift: ClassVar[int] = 7


class Bitmap(Table):
    """Of one block.

    Attributes:
        data: where the block begins, bytes.
        inside: the block ends before the footer, as it should.
        full: all of its sectors are stored.
    """

    __slots__ = ("data", "full", "inside")
    block_shift: ClassVar[int] = 9

    def __init__(self, index: int, offset: int, entries: Numbers) -> None:
        super().__init__(index, offset, entries, _BITS)
        self.data = offset + len(entries)
        self.inside = True
        self.full = False


class BlockImage(WritableTableMap[Bitmap]):
    """An open dynamic or differencing image.

    Args:
        dd: the image in its chain.
        file: the image file.
        footers: of it.
        header: of it.

    Attributes:
        footers, header: as given.
        blocks: the block table.
        parents: names of the parent; the one to go by first.
        end: where the footer is to be, bytes.
        packed_footer: its bytes.
        places: of the structures that are no blocks: first byte, and first one past them.
    """

    whole_clusters: ClassVar[bool] = True
    no_table: ClassVar[int] = UNUSED

    def __init__(
        self, dd: DiskDriver[Any], file: ImageFile, footers: Footers, header: Header
    ) -> None:
        super().__init__(file, footers.footer.sectors, header.block_size)
        self.table_shift = self.cluster_shift
        self.unit_shift = 0
        self._mask = (1 << self.cluster_shift) - 1
        self.table_bytes = header.bitmap_bytes
        self.tables = TableCache(file, self.read_table, self.table_bytes, dd.options.metadata_cache)
        self._spare: list[int] = []
        self.adopt(footers, header)
        self.clusters = WritableClusters(dd, self)

    def adopt(self, footers: Footers, header: Header) -> None:
        """Go by these from now on, which are in the file; blocks are of the same size.

        Args:
            footers: of the file.
            header: of it.
        """
        footer, read = footers.footer, self.file.read_metadata
        self.footers, self.header, self.sectors = footers, header, footer.sectors
        content = read(header.table_offset, 4 * header.entries_for(self.sectors))
        self.blocks = BlockTable(-1, header.table_offset, _SECTORS.decode(content), _SECTORS)
        self.tables.directory = self.blocks
        self.tables.forget()  # bitmaps of blocks that there are no more
        self.parents = recorded_names(read, header) if footer.disk_type == DIFFERENCING else []
        self._limit = footers.at if footers.end else _MOST_BLOCKS_END
        self._footer_at = footers.at if footers.end else -1
        self.end = -(-footers.at >> SECTOR_SHIFT) << SECTOR_SHIFT
        self.packed_footer = footer.pack()
        self.places = header.places(footer.data_offset)

    # ---- where ------------------------------------------------------------------------------

    def table_place(self, index: int) -> int:
        entry = self.blocks.entries[index]
        if entry == UNUSED:
            return 0
        place = entry << SECTOR_SHIFT
        if index in self.tables:
            return place
        end = place + self.table_bytes + self.header.block_size
        if any(place < stop and start < end for start, stop in self.places):
            raise ImageFormatError(f"has a block at an impossible place ({place:#x})")
        if place + self.table_bytes > min(self._limit, self.file.size):
            raise ImageFormatError(
                f"has a block past the end of the file (at {place:#x}): its content is lost",
                errno=errno.EIO,
            )
        return place

    def read_table(self, index: int, read: Read) -> Bitmap | None:
        place = self.table_place(index)
        content = read(place, self.table_bytes)
        if content is None:
            return None
        bitmap = Bitmap(index, place, _BITS.decode(content))
        self._see_whether_full(bitmap)
        return bitmap

    def _see_whether_full(self, bitmap: Bitmap) -> None:
        size = self.bytes_of(bitmap.index)
        bitmap.inside = bitmap.data + size <= self._limit
        bitmap.full = bitmap.inside and all_set(bitmap.entries, 0, size >> SECTOR_SHIFT)

    def run_in(self, table: Bitmap, sector: int, stop: int) -> Run:
        skip = sector & self._mask
        kind = DATA if is_set(table.entries, skip) else HOLE
        count = same_until(table.entries, skip, skip + stop - sector) - skip
        where = table.data + (skip << SECTOR_SHIFT)
        room = (self._limit - where) >> SECTOR_SHIFT
        if room < 1:
            raise ImageFormatError(
                f"has a block that reaches into its footer (at {where:#x})", errno=errno.EIO
            )
        return Run(kind, sector, min(count, room), where)

    def place(self, sector: int, nb_sectors: int) -> int:
        """Where all is stored, or nothing."""
        index, skip = sector >> self.table_shift, sector & self._mask
        if skip + nb_sectors > self._mask + 1:
            return ASK
        bitmap = self.tables.young.get(index)
        if bitmap is None:
            return NOWHERE if self.blocks.entries[index] == UNUSED else ASK
        bits, end = bitmap.entries, skip + nb_sectors
        if bitmap.full or (bitmap.inside and same_until(bits, skip, end) == end):
            return bitmap.data + (skip << SECTOR_SHIFT) if is_set(bits, skip) else NOWHERE
        return ASK

    def place_to_write(self, sector: int, nb_sectors: int) -> int:
        """Where all is stored."""
        place = self.place(sector, nb_sectors)
        return ASK if place == NOWHERE else place

    def bytes_of(self, index: int) -> int:
        """How much of a block is of the disk: of the last one perhaps not all."""
        first = index << self.table_shift
        return min(self._mask + 1, self.sectors - first) << SECTOR_SHIFT

    def next_place(self, end: int) -> int:
        """Where the bitmap of a new block goes, if what there is ends at an offset; bytes."""
        return ((end + self.table_bytes + _PAGE - 1) & -_PAGE) - self.table_bytes

    def footer_is_at(self, end: int) -> None:
        """The footer was put to an offset (bytes), and nothing is behind it."""
        self.end = self._footer_at = self._limit = end
        self._spare.clear()

    # ---- what changes -----------------------------------------------------------------------

    def begin_writing(self) -> None:
        """Nothing overlaps, and there is a good copy of the footer before the other one moves.

        Raises:
            ImageFormatError: something does.
            OSError: as the system says.
        """
        length = self.table_bytes + self.header.block_size
        used = [entry << SECTOR_SHIFT for entry in self.blocks.entries if entry != UNUSED]
        places = sorted([*self.places, *((place, place + length) for place in used)])
        if any(end > start for (_, end), (start, _) in pairwise(places)):
            raise ImageFormatError("has blocks that overlap; it can only be read")
        if places[-1][1] > self._limit:
            raise ImageFormatError("has a block that reaches into its footer; it can only be read")
        if places[-1][1] > self.file.size:
            self._refuse_lost()
        self.end = max(self.end, -(-places[-1][1] >> SECTOR_SHIFT) << SECTOR_SHIFT)
        self._limit = _MOST_BLOCKS_END
        if not self.footers.copy:
            self.file.write_metadata(0, self.packed_footer)
            if res := self.file.flush_blocking():
                raise OSError(-res, "the copy of the footer cannot be written")

    def _refuse_lost(self) -> None:
        """The file grows with the first new block: what it lacks would be a hole, and zeroes.

        Raises:
            ImageFormatError: a block is not all there.
        """
        size = self.file.size - self.table_bytes
        for index, entry in enumerate(self.blocks.entries):
            if entry != UNUSED and (entry << SECTOR_SHIFT) + self.bytes_of(index) > size:
                raise ImageFormatError(
                    "has a block past the end of the file: its content is lost; it can only be read"
                )

    def allocate(self, sector: int, count: int) -> Place:
        """One block, since there are bitmaps in between; the footer goes behind it at once.

        Raises:
            OSError: ENOSPC: the block table has no numbers for what lies behind 2 TiB.
        """
        if self._spare:
            return Place(self._spare.pop(), 1)
        data = self.next_place(self.end) + self.table_bytes
        end = data + self.header.block_size
        if end > _MOST_BLOCKS_END:
            raise OSError(errno.ENOSPC, "a VHD cannot have more than 2 TiB")
        self.file.write_metadata(end, self.packed_footer)
        self.end = end
        return Place(data, 1, blank=True)

    def give_back(self, where: int, count: int) -> None:
        """Other programs read content whatever the bitmap says: it must be zeroes again."""
        size = self.header.block_size

        def punched(res: int) -> int:
            if not res:
                self._spare.append(where)
            return 0

        self.file.queue_work(lambda: self.file.discard_blocking(where, size), punched)

    def link(self, sector: int, stop: int, where: int) -> None:
        index, skip = sector >> self.table_shift, sector & self._mask
        new = self.blocks.entries[index] == UNUSED
        if new:
            place = where - (skip << SECTOR_SHIFT) - self.table_bytes
            bitmap = Bitmap(index, place, _BITS.zeroes(self.table_bytes))
        else:
            bitmap = self.tables.wait(index)
        first, bits = with_ones(bitmap.entries, skip, skip + stop - sector)
        if new:
            self.tables.add(bitmap)
            self.blocks.set(index, [place >> SECTOR_SHIFT])
        self.tables.set(bitmap, first, bits)
        self._see_whether_full(bitmap)

    def clear_behind(self) -> None:
        """Let what the last block holds behind the disk's end be zeroes, on disk when this returns.

        Raises:
            OSError, TapError: as the system says.
        """
        self.clusters.begin_writing()
        index = (self.sectors - 1) >> self.table_shift
        first = self.bytes_of(index) >> SECTOR_SHIFT
        if self.blocks.entries[index] != UNUSED and first <= self._mask:
            bitmap = self.tables.wait(index)
            start, bits = with_zeroes(bitmap.entries, first, self._mask + 1)
            self.tables.set(bitmap, start, bits)
            where, length = bitmap.data + (first << SECTOR_SHIFT), self.header.block_size
            length -= first << SECTOR_SHIFT
            if res := self.file.zero_blocking(where, length, True):
                raise OSError(-res, "what lies behind the end cannot be cleared")
        self.clusters.save()

    def table_for(self, entries: int) -> bytes:
        """The block table with another number of entries, as it lies in a file."""
        kept = self.blocks.entries[:entries]
        kept.extend([UNUSED] * (entries - len(kept)))
        return _SECTORS.encode(kept)

    def picture(self) -> Picture:
        taken, end = self.tables.take(), self.end
        footer = [(end, self.packed_footer)] if end != self._footer_at else []

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 1)
            if not failed:
                self._footer_at = end

        return Picture([taken.fresh + footer, taken.changed], conclude)
