"""From sectors of the disk to what lies there: runs of one kind, as the L2 tables say.

Source: qcow2.rst, "Cluster mapping", "Extended L2 Entries".
"""

from __future__ import annotations

from collections.abc import Iterator

from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import (
    compressed,
    kind_of_all,
    offset_of,
    subcluster_kind,
    subclusters,
)
from tap_qcow2.tables.l2tables import L2Table, L2Tables
from tapcore import SECTOR_SHIFT, ImageFile, ImageFormatError
from tapcore.clusters import DATA, HOLE, NOWHERE, PACKED, Read, Run, TableMap


class L2Map(TableMap[L2Table]):
    """What L2 tables say, those of the disk or of a snapshot.

    Args:
        file: the image file.
        decoder: of the image's entries.
        tables: the L2 tables.
        sectors: of the disk that they map.
        data: the external data file, if it is open.
    """

    tables: L2Tables

    def __init__(
        self,
        file: ImageFile,
        decoder: Decoder,
        tables: L2Tables,
        sectors: int,
        data: ImageFile | None = None,
    ) -> None:
        self.geometry = geometry = decoder.geometry
        super().__init__(file, sectors, geometry.cluster_size, data)
        self.decoder = decoder
        self.tables = tables
        self.table_shift = geometry.table_shift
        self.table_bytes = geometry.cluster_size
        self.unit_shift = geometry.unit.bit_length() - 1 - SECTOR_SHIFT

    def table_place(self, index: int) -> int:
        """As the L1 table says."""
        return self.tables.offset_of(index)

    def read_table(self, index: int, read: Read) -> L2Table | None:
        """By the cache, which knows the L1 table."""
        return self.tables.read_table(index, read)

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """As for every map; errors tell of the sector."""
        try:
            for run in super().runs(sector, stop):
                yield run
                sector = run.end
        except ImageFormatError as exc:
            exc.message = f"{exc.message}, at {sector << SECTOR_SHIFT} of the disk"
            raise

    def run_in(self, table: L2Table, sector: int, stop: int) -> Run:
        """As the entries say, one after the other."""
        geometry = self.geometry
        if geometry.extended:
            return self._extended_run(table.entries, sector, stop)
        shift = geometry.cluster_shift
        at = (sector >> shift) & geometry.entry_mask
        last = ((stop - 1) >> shift) & geometry.entry_mask
        skip = sector & geometry.sector_mask
        kind, where, count = self.decoder.run(table.entries, at, last)
        until = min(sector - skip + (count << shift), stop)
        if kind != PACKED:
            where = where + (skip << SECTOR_SHIFT) if where or kind == DATA else NOWHERE
        return Run(kind, sector, until - sector, where)

    def _extended_run(self, entries: Words, sector: int, stop: int) -> Run:
        """The same, by subclusters, of which each may be stored in another way."""
        geometry, decoder = self.geometry, self.decoder
        shift = geometry.cluster_shift
        at = ((sector >> shift) & geometry.entry_mask) * 2
        unit = geometry.unit >> SECTOR_SHIFT
        skip = sector & geometry.sector_mask
        kind = self._kind_within(entries, at, skip, stop - sector)
        if kind >= 0:
            where = _place(offset_of(entries[at]), kind, skip << SECTOR_SHIFT)
            return Run(kind, sector, stop - sector, where)
        start, kind, where, expected = sector, -1, NOWHERE, NOWHERE
        while sector < stop:
            entry, bitmap = entries[at], entries[at + 1]
            try:
                decoder.check_extended(entry, bitmap)
            except ImageFormatError:
                if kind >= 0:  # is told to whoever asks for that cluster
                    break
                raise
            skip = sector & geometry.sector_mask
            if compressed(entry):
                if kind >= 0:
                    break
                until = min(sector - skip + geometry.cluster_sectors, stop)
                return Run(PACKED, sector, until - sector, entry)
            here = subcluster_kind(bitmap, skip // unit)
            place = _place(offset_of(entry), here, skip << SECTOR_SHIFT)
            if kind < 0:
                kind, where, expected = here, place, place
            elif here != kind or place != expected:
                break
            clusters = 0 if skip else decoder.alike(entries, at, stop - sector >> shift)
            step = clusters << shift or unit - skip % unit
            sector += step
            if place >= 0:
                expected += step << SECTOR_SHIFT
            if not sector & geometry.sector_mask:
                at += 2 * (clusters or 1)
        return Run(kind, start, min(sector, stop) - start, where)

    def _kind_within(self, entries: Words, at: int, skip: int, count: int) -> int:
        """How a part of one extended cluster is stored; -1: this cannot tell.

        Args:
            entries: of a table.
            at: of the cluster's entry.
            skip: where the part begins in it, sectors.
            count: how many sectors; perhaps more than the cluster has.

        Raises:
            ImageFormatError: the entry is not possible.
        """
        geometry, entry, bitmap = self.geometry, entries[at], entries[at + 1]
        if skip + count > geometry.cluster_sectors or compressed(entry):
            return -1
        self.decoder.check_extended(entry, bitmap)
        unit = geometry.unit >> SECTOR_SHIFT
        return kind_of_all(bitmap, subclusters(skip // unit, (skip + count - 1) // unit + 1))


def _place(host: int, kind: int, skip: int) -> int:
    """Host offset of something in a cluster at a host offset, where it has space (bytes)."""
    return host + skip if kind == DATA or (host and kind != HOLE) else NOWHERE
