"""Zeroes and discards: entries that say so, without writing; space is given back where it may be.

Source: qcow2.rst, "Standard Cluster Descriptor" (bit 0) and "Extended L2 Entries".
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from tap_qcow2.ondisk.entries import (
    ALL_DATA,
    ALL_ZEROES,
    compressed,
    place_of,
    subclusters,
    with_zeroes,
)
from tap_qcow2.tables.l2tables import L2Table
from tap_qcow2.tables.links import own_table, replace
from tap_qcow2.tables.metadata import Metadata
from tapcore import SECTOR_SHIFT, DiskDriver, ImageFile


class Clearing:
    """Lets clusters, or subclusters, read as zeroes.

    Args:
        dd: the image in its chain.
        metadata: of it.
        data: the file that holds its content.
    """

    def __init__(self, dd: DiskDriver, metadata: Metadata, data: ImageFile) -> None:
        self._dd = dd
        self._metadata = metadata
        self._data = data
        self._geometry = metadata.geometry
        self._decoder = metadata.decoder

    def clear(self, sector: int, end: int, discard: bool, may_unmap: bool) -> int:
        """As `WritableMap.clear`, of the sectors from one up to another."""
        parent, mask = self._dd.next, self._geometry.sector_mask
        clear = self._discard if discard else self._zero
        if parent is None:
            return clear(sector, end, True, may_unmap)
        below = (parent.size + mask) & ~mask  # what it may show
        if sector < below:
            res = clear(sector, min(end, below), False, may_unmap)
            if res or end <= below:
                return res
        return clear(max(sector, below), end, True, may_unmap)

    def _table(self, sector: int) -> L2Table | None:
        """The table that maps a sector, if there is one; waits for it."""
        tables, index = self._metadata.tables, sector >> self._geometry.table_shift
        table = tables.young.get(index)
        if table is None and tables.offset_of(index):
            table = tables.wait(index)
        return table

    def _entries(self, table: L2Table | None, sector: int, end: int) -> tuple[int, list[int]]:
        """The words of the clusters of a range, and where they are in their table."""
        geometry = self._geometry
        at = ((sector >> geometry.cluster_shift) & geometry.entry_mask) * geometry.words
        count = -(-(end - sector) >> geometry.cluster_shift) * geometry.words
        if table is None:
            return at, [0] * count
        return at, [table.entries[at]] if count == 1 else table.entries[at : at + count].tolist()

    def _replace(self, sector: int, at: int, old: list[int], new: list[int]) -> None:
        """Change words; what they do not lead to any more is given up."""
        if old != new:
            table = own_table(self._metadata, sector >> self._geometry.table_shift)
            replace(self._metadata, table, at, new)

    # ---- clusters ---------------------------------------------------------------------------

    def _zero(self, sector: int, end: int, zero_below: bool, may_unmap: bool) -> int:
        table, header = self._table(sector), self._metadata.header
        if zero_below and table is None:
            return 0
        if header.version < 3:
            return self._zero_in_version_2(table, sector, end, zero_below, may_unmap)
        if self._geometry.extended:
            return self._each(sector, end, self._zero_subclusters, may_unmap)
        decoder = self._decoder
        keeps = not may_unmap or decoder.elsewhere
        at, old = self._entries(table, sector, end)
        new = [decoder.zeroes(decoder.own_space(each) if keeps else -1) for each in old]
        if header.data_file_raw:
            self._zero_in_data_file(sector, end, may_unmap=may_unmap)
        self._replace(sector, at, old, new)
        return 0

    def _zero_in_version_2(
        self, table: L2Table | None, sector: int, end: int, zero_below: bool, may_unmap: bool
    ) -> int:
        """There is no flag for zeroes: only what no parent shows can be forgotten."""
        at, old = self._entries(table, sector, end)
        if not zero_below or self._decoder.elsewhere or (any(old) and not may_unmap):
            return -errno.EOPNOTSUPP
        self._replace(sector, at, old, [0] * len(old))
        return 0

    def _discard(self, sector: int, end: int, zero_below: bool, may_unmap: bool) -> int:
        """Afterwards it reads as zeroes where the format can say that, else as before."""
        header, decoder = self._metadata.header, self._decoder
        old_version = header.version < 3
        table = self._table(sector)
        if table is None and (zero_below or old_version):
            return 0
        if self._geometry.extended:
            return self._each(sector, end, self._discard_subclusters, zero_below)
        at, old = self._entries(table, sector, end)
        new = old.copy()
        for number, entry in enumerate(old):
            if old_version:
                new[number] = 0 if zero_below and not decoder.elsewhere else entry
            elif not zero_below or decoder.refers(entry):
                kept = place_of(entry) if header.data_file_raw else 0
                new[number] = kept | decoder.zeroes()
        if header.data_file_raw and old != new:
            self._zero_in_data_file(sector, end, may_unmap=True)
        self._replace(sector, at, old, new)
        return 0

    # ---- subclusters ------------------------------------------------------------------------

    def _each(
        self, sector: int, end: int, clear: Callable[[int, int, bool], int], how: bool
    ) -> int:
        """Cluster by cluster; whether it can be done is the same for all."""
        while sector < end:
            until = min((sector | self._geometry.sector_mask) + 1, end)
            if res := clear(sector, until, how):
                return res
            sector = until
        return 0

    def _chosen(self, sector: int, until: int) -> int:
        unit, skip = self._geometry.unit >> SECTOR_SHIFT, sector & self._geometry.sector_mask
        return subclusters(skip // unit, -(-(skip + until - sector) // unit))

    def _zero_subclusters(self, sector: int, until: int, may_unmap: bool) -> int:
        chosen = self._chosen(sector, until)
        at, old = self._entries(self._table(sector), sector, until)
        entry, bitmap = old[0], with_zeroes(old[1], chosen)
        if compressed(entry) and chosen != ALL_DATA:
            return -errno.EOPNOTSUPP
        self._zero_in_data_file(sector, until, may_unmap=may_unmap)
        loses = compressed(entry) or (may_unmap and not self._decoder.elsewhere)
        if bitmap == ALL_ZEROES and loses:
            entry = 0
        self._replace(sector, at, old, [entry, bitmap])
        return 0

    def _discard_subclusters(self, sector: int, until: int, zero_below: bool) -> int:
        chosen = self._chosen(sector, until)
        if until == self._dd.size:  # what lies past the disk's end keeps no space
            chosen |= ALL_DATA & ~(chosen | chosen - 1)
        at, old = self._entries(self._table(sector), sector, until)
        entry, bitmap = old[0], with_zeroes(old[1], chosen)
        if zero_below and not old[1] and not self._decoder.refers(entry):
            return 0
        if compressed(entry) and chosen != ALL_DATA:
            return 0
        self._zero_in_data_file(sector, until, may_unmap=True)
        if bitmap == ALL_ZEROES:
            entry = place_of(entry) if self._metadata.header.data_file_raw else 0
        self._replace(sector, at, old, [entry, bitmap])
        return 0

    def _zero_in_data_file(self, sector: int, until: int, *, may_unmap: bool) -> None:
        """A raw data file must show the same as the image."""
        if not self._metadata.header.data_file_raw:
            return
        offset, length = sector << SECTOR_SHIFT, (until - sector) << SECTOR_SHIFT
        if self._data.zero_blocking(offset, length, may_unmap):
            while length:
                content = memoryview(bytes(min(length, 1 << 20)))
                if res := self._data.write_blocking(offset, content):
                    raise OSError(-res, "write failed")
                offset += len(content)
                length -= len(content)
