"""Reading pages of the block table, and the bits of blocks that are stored in part."""

from __future__ import annotations

from collections.abc import Iterator

from tap_vhdx.bat import (
    CODING,
    ENTRY_BYTES,
    PARTIAL,
    PLACE,
    PRESENT,
    STATE,
    Page,
    geometry_of,
)
from tap_vhdx.headers import MIB
from tap_vhdx.layout import Layout
from tapcore import SECTOR_SHIFT, EmptyTables, ImageFile
from tapcore.clusters import Read


class Pages:
    """The block table of a file.

    Args:
        file: the image file.
        layout: of it.

    Attributes:
        file, layout: as given.
        geometry: of the table.
        page_bytes: of a page, but for the entries of sector bitmaps in it.
        bits_bytes: of the bits of a page's blocks; 0: none is stored in part.
        bit_shift: log2 of the sectors of 512 bytes that a bit stands for.
    """

    def __init__(self, file: ImageFile, layout: Layout) -> None:
        self.file = file
        self.layout = layout
        self.geometry = geometry_of(layout.disk)
        self.page_bytes = ENTRY_BYTES << self.geometry.page_shift
        disk = layout.disk
        self.bit_shift = disk.logical.bit_length() - 1 - SECTOR_SHIFT
        self.bits_bytes = 0
        if self.differs:
            self.bits_bytes = (disk.block_size << self.geometry.page_shift) // disk.logical >> 3
        self._front = max(end for _, end in layout.places)

    @property
    def differs(self) -> bool:
        """Whether what is not stored here is a parent's."""
        return self.layout.disk.locator is not None

    def is_structure(self, place: int, length: int) -> bool:
        """Whether something that is no block lies in a range of the file; bytes."""
        if place >= self._front:
            return False
        return any(place < end and start < place + length for start, end in self.layout.places)

    def place(self, index: int) -> int:
        """Where a page begins in the file, bytes."""
        return self.entry_place(self.geometry.page(index)[0])

    def entry_place(self, number: int) -> int:
        """Where an entry lies in the file, bytes."""
        return self.layout.regions.bat.offset + ENTRY_BYTES * number

    def entry(self, number: int) -> int:
        """An entry, as the log says; waits for the disk."""
        entry = self._entry(number, self.file.read_metadata)
        assert entry is not None  # this way of reading waits
        return entry

    def _entry(self, number: int, read: Read) -> int | None:
        at = self.entry_place(number)
        content = read(at, ENTRY_BYTES)
        if content is None:
            return None
        return int.from_bytes(self.layout.overlay.patch(at, content), "little")

    def covered(self, index: int, stop: int) -> bool:
        """Whether the log says something of pages from one up to another."""
        if not self.layout.overlay.starts:
            return False
        start, last = self.place(index), self.geometry.page(stop - 1)
        return self.layout.overlay.covers(start, self.entry_place(sum(last)))

    def read(self, index: int, read: Read) -> Page | None:
        """A page, by one of the file's ways; None where that would wait."""
        place, count = self.place(index), self.geometry.page(index)[1]
        content = read(place, ENTRY_BYTES * count)
        if content is None:
            return None
        page = Page(index, place, CODING.decode(self.layout.overlay.patch(place, content)))
        places = [entry & PLACE for entry in page.entries if entry & 7 >= PRESENT]
        page.sound = not places or min(places) >= self._front
        if self.differs and any(entry & STATE == PARTIAL for entry in page.entries):
            bits = self._bits_of(index, read)
            if bits is None:
                return None
            page.bits = bits
        return page

    def _bits_of(self, index: int, read: Read) -> bytes | None:
        """The bits of a page's blocks; empty where they are not where they must be."""
        geometry = self.geometry
        block = index << geometry.page_shift
        entry = self._entry(geometry.bitmap_entry(block >> geometry.ratio_shift), read)
        if entry is None:
            return None
        place = entry & PLACE
        if entry & STATE != PRESENT or self.is_structure(place, MIB):
            return b""
        if place + MIB > self.file.size:
            return b""
        in_chunk = block & (1 << geometry.ratio_shift) - 1
        place += in_chunk * self.bits_bytes >> geometry.page_shift
        bits = read(place, self.bits_bytes)
        return None if bits is None else self.layout.overlay.patch(place, bits)

    def all(self) -> Iterator[Page]:
        """The pages that say something; waits for the disk.

        Raises:
            OSError: as the system says.
        """
        holes = EmptyTables(self.file, self.page_bytes)
        for index in range(self.geometry.pages):
            if holes.holds(self.place(index)) and not self.covered(index, index + 1):
                continue
            page = self.read(index, self.file.read_metadata)
            assert page is not None  # this way of reading waits
            if any(page.entries):
                yield page

    def bitmaps(self) -> Iterator[tuple[int, int]]:
        """The chunks whose sector bitmap has a place, and that, bytes; waits for the disk."""
        if not self.differs:
            return
        geometry = self.geometry
        for chunk in range(-(-geometry.blocks >> geometry.ratio_shift)):
            entry = self.entry(geometry.bitmap_entry(chunk))
            if entry & STATE == PRESENT:
                yield chunk, entry & PLACE
