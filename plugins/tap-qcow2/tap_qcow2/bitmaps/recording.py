"""What was written, bit by bit, since a bitmap was marked as in use."""

from __future__ import annotations

from tap_qcow2.bitmaps.bits import fill
from tap_qcow2.ondisk.bitmapdirectory import BitmapEntry
from tapcore import SECTOR_SHIFT


class Recording:
    """One bitmap that is marked as in use, and its bits that were set since.

    Bits are kept in pages, as many as a cluster holds, where any is set.

    Args:
        entry: as it was before it was marked.
        cluster_size: bytes.
        size: of the disk at that time, bytes.

    Attributes:
        pages: number of the table entry: its new bits.
        full: numbers of table entries of which every bit is set; they have no page.
    """

    __slots__ = (
        "_bytes_mask",
        "_page_bytes",
        "_page_shift",
        "_shift",
        "entry",
        "full",
        "pages",
        "size",
    )

    def __init__(self, entry: BitmapEntry, cluster_size: int, size: int) -> None:
        self.entry = entry
        self.size = size
        self.pages: dict[int, bytearray] = {}
        self.full: set[int] = set()
        self._page_bytes = cluster_size
        self._bytes_mask = cluster_size - 1
        self._page_shift = cluster_size.bit_length() + 2
        self._shift = entry.granularity_bits - SECTOR_SHIFT

    def mark(self, first_sector: int, last_sector: int) -> None:
        """These sectors, up to and with the last one, were changed."""
        first, last = first_sector >> self._shift, last_sector >> self._shift
        if first != last:
            self._mark_run(first, last + 1)
            return
        number = first >> self._page_shift
        page = self.pages.get(number)
        if page is None:
            if number in self.full:
                return
            page = self.pages[number] = bytearray(self._page_bytes)
        page[first >> 3 & self._bytes_mask] |= 1 << (first & 7)

    def _mark_run(self, first: int, end: int) -> None:
        per_page = 1 << self._page_shift
        while first < end:
            number = first >> self._page_shift
            base = number << self._page_shift
            stop = min(end, base + per_page)
            if stop - first == per_page:
                self.full.add(number)
                self.pages.pop(number, None)
            elif number not in self.full:
                page = self.pages.get(number)
                if page is None:
                    page = self.pages[number] = bytearray(self._page_bytes)
                fill(page, first - base, stop - base)
            first = stop

    def recorded(self) -> dict[int, bytes | bytearray]:
        """The new bits, by number of the table entry."""
        ones = b"\xff" * self._page_bytes if self.full else b""
        return {**self.pages, **dict.fromkeys(self.full, ones)}
