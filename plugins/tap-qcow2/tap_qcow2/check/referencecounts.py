"""How often each host cluster is referred to, as counted: in pages, made only where there is one.

A page holds a byte a cluster; one in which a count exceeds that is widened. Memory is what the
references of an image justify, however long its file claims to be.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TypeAlias

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.refcountblock import RefcountBlock

Page: TypeAlias = "bytearray | array[int]"

_MAX_PAGE_BITS = 9
_FREE_PAGES = 1 << 18
"""Pages that may be made without asking for what: 128 MiB."""

_REFERENCES_A_PAGE = 8
"""Beyond that, so many references must have been counted for each page."""


class TooFarApartError(Exception):
    """An image refers to places so far apart that counting them would take unbounded memory."""


class Counts:
    """The references to host clusters.

    Args:
        per_block_bits: log2 of the clusters that a refcount block counts; a page lies in one block.

    Attributes:
        page_bits: log2 of the clusters in a page.
        pages: by the number of their first cluster, shifted by `page_bits`.
    """

    def __init__(self, per_block_bits: int) -> None:
        self.page_bits = min(per_block_bits, _MAX_PAGE_BITS)
        self.pages: dict[int, Page] = {}
        self._size = 1 << self.page_bits
        self._total = 0

    # ---- counting ---------------------------------------------------------------------------

    def add(self, cluster: int, count: int, times: int = 1) -> None:
        """Clusters that lie side by side are referred to.

        Args:
            cluster: the first one.
            count: how many.
            times: how often each of them; may be negative for what was counted before.

        Raises:
            TooFarApartError: see there.
        """
        self._total += count * times
        size = self._size
        while count:
            number, at = cluster >> self.page_bits, cluster & (size - 1)
            step = min(count, size - at)
            page = self.pages.get(number)
            if page is None:
                page = self._new_page(number)
            try:
                if step == 1:
                    page[at] += times
                else:
                    _add_slice(page, at, at + step, times)
            except ValueError:  # more than a byte holds
                self._widen(number, page, at, step, times)
            cluster += step
            count -= step

    def add_each(self, clusters: list[int], times: int) -> None:
        """The same for single clusters that lie anywhere: quicker for many."""
        pages, bits, mask = self.pages, self.page_bits, self._size - 1
        self._total += len(clusters) * times
        for cluster in clusters:
            try:
                pages[cluster >> bits][cluster & mask] += times
            except (KeyError, ValueError):
                self.add(cluster, 1, times)

    def _new_page(self, number: int) -> Page:
        pages = self.pages
        if len(pages) >= _FREE_PAGES and len(pages) * _REFERENCES_A_PAGE > self._total:
            raise TooFarApartError
        page = pages[number] = bytearray(self._size)
        return page

    def _widen(self, number: int, page: Page, at: int, step: int, times: int) -> None:
        wide = self.pages[number] = array("Q", list(page))
        for place in range(at, at + step):
            wide[place] += times

    # ---- asking -----------------------------------------------------------------------------

    def get(self, cluster: int) -> int:
        """How often one is referred to."""
        page = self.pages.get(cluster >> self.page_bits)
        return page[cluster & (self._size - 1)] if page is not None else 0

    def ones(self, cluster: int, count: int) -> int:
        """How many of the clusters side by side are referred to exactly once."""
        if count == 1:
            return int(self.get(cluster) == 1)
        found = 0
        while count:
            at = cluster & (self._size - 1)
            step = min(count, self._size - at)
            page = self.pages.get(cluster >> self.page_bits)
            if page is not None:
                found += page[at : at + step].count(1)
            cluster += step
            count -= step
        return found

    def all_single(self) -> bool:
        """Nothing is referred to more than once."""
        return all(
            isinstance(page, bytearray) and not page.translate(None, b"\0\1")
            for page in self.pages.values()
        )

    def end(self) -> int:
        """The number behind the last cluster that is referred to."""
        for number in sorted(self.pages, reverse=True):
            last = last_used(self.pages[number])
            if last >= 0:
                return (number << self.page_bits) + last + 1
        return 0

    def by_block(self, per_block_bits: int) -> dict[int, list[int]]:
        """The numbers of the pages in each refcount block, in order."""
        found: dict[int, list[int]] = {}
        for number in sorted(self.pages):
            found.setdefault(number >> (per_block_bits - self.page_bits), []).append(number)
        return found

    def runs_of_free(self, start: int) -> Iterator[tuple[int, int]]:
        """Clusters that nothing refers to, from one on up: (first, how many) inside a page each.

        It does not end: what lies behind all pages is free.
        """
        number = start >> self.page_bits
        at = start & (self._size - 1)
        while True:
            base = number << self.page_bits
            page = self.pages.get(number)
            if page is None:
                yield base + at, self._size - at
            else:
                yield from _free_in(page, base, at)
            number, at = number + 1, 0

    # ---- as on disk -------------------------------------------------------------------------

    def serialize(self, number: int, order: int) -> bytes:
        """A page as the part of a refcount block that it is; what does not fit stays at the most.

        Args:
            number: of the page.
            order: log2 of the width in bits.
        """
        return serialize_page(self.pages[number], order)

    def block(self, number: int, per_block_bits: int, order: int, pages: list[int]) -> bytes:
        """A whole refcount block.

        Args:
            number: of the block.
            per_block_bits: log2 of its clusters.
            order: log2 of the width in bits.
            pages: numbers of those that lie in it.
        """
        content = bytearray(1 << (per_block_bits + order - 3))
        size = len(content) >> (per_block_bits - self.page_bits)
        first = number << (per_block_bits - self.page_bits)
        for page in pages:
            at = (page - first) * size
            content[at : at + size] = self.serialize(page, order)
        return bytes(content)


def _add_slice(page: Page, at: int, end: int, times: int) -> None:
    """Raises ValueError where a byte is too small."""
    if isinstance(page, bytearray):
        part = page[at:end]
        if part.count(0) == len(part):
            page[at:end] = bytes((times,)) * len(part)
            return
        if times > 0 and max(part) + times > 255:
            raise ValueError
        page[at:end] = part.translate(bytes((value + times) & 255 for value in range(256)))
        return
    for place in range(at, end):
        page[place] += times


def last_used(page: Page) -> int:
    """The last place in a page that is not 0; -1 where all are."""
    if isinstance(page, bytearray):
        return len(page.rstrip(b"\0")) - 1
    return max((at for at, value in enumerate(page) if value), default=-1)


def _free_in(page: Page, base: int, at: int) -> Iterator[tuple[int, int]]:
    size = len(page)
    while at < size:
        if page[at]:
            at += 1
            continue
        start = at
        while at < size and not page[at]:
            at += 1
        yield base + start, at - start


def serialize_page(page: Page, order: int) -> bytes:
    """Counts as they lie in a refcount block; see `Counts.serialize`."""
    most = (1 << (1 << order)) - 1
    if not isinstance(page, bytearray):
        if order >= 3:
            values = bigendian.zeroes(len(page), {3: "B", 4: "H", 5: "I", 6: "Q"}[order])
            for at, value in enumerate(page):
                values[at] = min(value, most)
            return bigendian.to_bytes(values)
        page = bytearray(min(value, most) for value in page)
    if order >= 3:
        size = 1 << (order - 3)
        content = bytearray(len(page) * size)
        content[size - 1 :: size] = page
        return bytes(content)
    if max(page) > most:
        page = page.translate(bytes(min(value, most) for value in range(256)))
    return RefcountBlock(order, 0, array("B", bytes(page))).serialize()
