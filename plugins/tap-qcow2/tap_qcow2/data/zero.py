"""Zeroes and discards: entries that say so, without writing; space is given back where it may be.

Source: qcow2.rst, "Standard Cluster Descriptor" (bit 0) and "Extended L2 Entries".
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.data.copyonwrite import nothing_below, shows_zeroes
from tap_qcow2.ondisk.entries import (
    ALL_ZEROES,
    compressed,
    place_of,
    subclusters,
    with_zeroes,
)
from tap_qcow2.ondisk.layout import SUBCLUSTERS
from tap_qcow2.tables.l2tables import Table
from tap_qcow2.tables.links import own_table, replace
from tap_qcow2.tables.writeback import Writeback
from tapcore import SECTOR_SHIFT, Answer, TapError


class Zeroing:
    """A discard, or a write of zeroes, that goes through the tables.

    Args:
        clusters: of a disk that is prepared for writing.
        writeback: brings changed tables to the disk.
        discard: only forget content; else it must read as zeroes afterwards.
        may_unmap: space may be given back.
        answer: of the request.
    """

    __slots__ = (
        "_answer",
        "_clusters",
        "_discard",
        "_geometry",
        "_header",
        "_may_unmap",
        "_writeback",
    )

    def __init__(
        self,
        clusters: Clusters,
        writeback: Writeback,
        discard: bool,
        may_unmap: bool,
        answer: Answer,
    ) -> None:
        self._clusters = clusters
        self._writeback = writeback
        self._geometry = clusters.geometry
        self._header = clusters.metadata.header
        self._discard = discard
        self._may_unmap = may_unmap
        self._answer = answer

    def run(self, sector: int, end: int) -> int:
        """Take the sectors from `sector` up to `end`; returns how many requests were completed."""
        busy, shift = self._clusters.busy, self._geometry.cluster_shift
        finished = 0
        done_from = sector
        while sector < end:
            cluster = sector >> shift
            if cluster in busy:
                finished += self._done(0, done_from, sector)
                stop = min(end, (cluster + 1) << shift)
                busy.wait(cluster, self._later(sector, stop))
                sector = done_from = stop
                continue
            try:
                res, stop = self._one(sector, end)
            except (TapError, OSError) as exc:
                res, stop = self._clusters.failure(exc), end
            if res:
                finished += self._done(0, done_from, sector)
                finished += self._done(res, sector, stop)
                done_from = stop
            sector = stop
            if sector < end and self._writeback.needed:
                self._writeback.flush(self._after_flush(sector, end))
                end = sector
        return finished + self._done(0, done_from, end)

    def _after_flush(self, sector: int, end: int) -> Callable[[int], int]:
        """So many tables have changed that the rest has to wait until they are on disk."""
        return lambda res: self._done(res, sector, end) if res else self.run(sector, end)

    def _later(self, sector: int, stop: int) -> Callable[[], int]:
        return lambda: self.run(sector, stop)

    def _done(self, res: int, sector: int, end: int) -> int:
        if sector >= end:
            return 0
        return self._answer(res, sector, end - sector)

    # ---- run by run -------------------------------------------------------------------------

    def _one(self, sector: int, end: int) -> tuple[int, int]:
        """The cluster, or the run of clusters without a table, at a sector: result, up to where."""
        geometry, tables = self._geometry, self._clusters.metadata.tables
        index = sector >> geometry.table_shift
        stop = min(end, (index + 1) << geometry.table_shift)
        has_table = tables.cached(index) is not None or tables.offset_of(index)
        if not has_table and nothing_below(self._clusters, sector):
            return 0, stop
        until = min((sector | geometry.sector_mask) + 1, end)
        table = tables.wait(index) if has_table else None
        whole = not sector & geometry.sector_mask and (
            until - sector == geometry.cluster_sectors or until == self._clusters.dd.size
        )
        if self._discard:
            if whole and (table is not None or self._header.version >= 3):
                self._discard_cluster(table, sector)
            return 0, until
        if not whole and not geometry.extended:
            return self._edge(table, sector, until), until
        if self._header.version < 3:
            return self._zero_in_version_2(table, sector, until), until
        if geometry.extended:
            return self._zero_subclusters(table, sector, until), until
        self._zero_cluster(sector, until)
        return 0, until

    def _edge(self, table: Table | None, sector: int, until: int) -> int:
        """A part of a cluster: nothing to be done where it shows zeroes already."""
        zero = shows_zeroes(self._clusters, table, [(sector, until)])
        return 0 if zero else -errno.EOPNOTSUPP

    def _zero_in_version_2(self, table: Table | None, sector: int, until: int) -> int:
        """There is no flag for zeroes: only what no parent shows can be forgotten."""
        if not nothing_below(self._clusters, sector) or self._clusters.host.elsewhere:
            return self._edge(table, sector, until)
        entry, _ = self._clusters.placement.entry(table, sector)
        if entry and not self._may_unmap:
            return -errno.EOPNOTSUPP
        if entry:
            self._replace(sector, 0, 0)
        return 0

    def _zero_cluster(self, sector: int, until: int) -> None:
        table = own_table(self._clusters.metadata, sector >> self._geometry.table_shift)
        decoder = self._clusters.decoder
        space = decoder.own_space(self._clusters.placement.entry(table, sector)[0])
        keep = space >= 0 and (not self._may_unmap or decoder.elsewhere)
        self._zero_in_data_file(sector, until)
        self._replace(sector, decoder.zeroes(space if keep else -1), 0)

    def _zero_in_data_file(self, sector: int, until: int) -> None:
        """A raw data file must show the same as the image."""
        if not self._header.data_file_raw:
            return
        data = self._clusters.host.opened()
        offset, length = sector << SECTOR_SHIFT, (until - sector) << SECTOR_SHIFT
        if data.zero_blocking(offset, length, self._may_unmap):
            while length:
                content = memoryview(bytes(min(length, 1 << 20)))
                if res := data.write_blocking(offset, content):
                    raise OSError(-res, "write failed")
                offset += len(content)
                length -= len(content)

    def _zero_subclusters(self, table: Table | None, sector: int, until: int) -> int:
        geometry = self._geometry
        unit = geometry.unit >> SECTOR_SHIFT
        start, stop = sector & geometry.sector_mask, ((until - 1) & geometry.sector_mask) + 1
        low, high = -(-start // unit), stop // unit
        if until == self._clusters.dd.size:
            high = -(-stop // unit)
        inner = low * unit, min(high * unit, stop)
        base = sector - start
        if inner[0] >= inner[1]:
            return self._edge(table, sector, until)
        entry, _ = self._clusters.placement.entry(table, sector)
        if compressed(entry) and high - low < SUBCLUSTERS:
            return self._edge(table, sector, until)
        edges = ((sector, base + inner[0]), (base + inner[1], until))
        if any(a < b and self._edge(table, a, b) for a, b in edges):
            return -errno.EOPNOTSUPP
        self._zero_in_data_file(base + inner[0], base + inner[1])
        table = own_table(self._clusters.metadata, sector >> geometry.table_shift)
        entry, bitmap = self._clusters.placement.entry(table, sector)
        bitmap = with_zeroes(bitmap, subclusters(low, high))
        if bitmap == ALL_ZEROES and self._may_lose_space(entry):
            entry = 0
        self._replace(sector, entry, bitmap)
        return 0

    def _may_lose_space(self, entry: int) -> bool:
        return compressed(entry) or (self._may_unmap and not self._clusters.host.elsewhere)

    def _replace(self, sector: int, entry: int, bitmap: int) -> None:
        """Change the entry of a sector's cluster; what it does not point to any more is free."""
        metadata, geometry = self._clusters.metadata, self._geometry
        table = own_table(metadata, sector >> geometry.table_shift)
        number = (sector >> geometry.cluster_shift) & geometry.entry_mask
        replace(metadata, table, number, entry, bitmap)

    # ---- discards ---------------------------------------------------------------------------

    def _discard_cluster(self, table: Table | None, sector: int) -> None:
        """Afterwards it reads as zeroes where the format can say that, else as before."""
        decoder, size = self._clusters.decoder, self._clusters.dd.size
        entry, bitmap = self._clusters.placement.entry(table, sector)
        zero_below = nothing_below(self._clusters, sector)
        if self._header.version < 3:
            if zero_below and entry and not decoder.elsewhere:
                self._replace(sector, 0, 0)
            return
        if zero_below and not bitmap and not decoder.refers(entry):
            return
        self._zero_in_data_file(sector, min((sector | self._geometry.sector_mask) + 1, size))
        kept = place_of(entry) if self._header.data_file_raw else 0
        if self._geometry.extended:
            self._replace(sector, kept, ALL_ZEROES)
        else:
            self._replace(sector, kept | decoder.zeroes(), 0)
