"""Clusters that lie past the end of the file: somebody cut it, or it never grew so far.

The format counts nothing, and new clusters go to the end of the file: just there where what is lost
should lie. So all tables are looked at before the first change.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from tap_qcow.layout import Geometry
from tap_qcow.tables import L2
from tapcore import SECTOR_SHIFT, EmptyTables, ImageFormatError, TableVisits, TapError
from tapcore.clusters import DATA, PACKED, Numbers, Run, Table, TableMap


@attrs.frozen
class Lost:
    """What lies past the end of the file: a run of clusters, or a table with all that it maps.

    Attributes:
        sector: first one of the disk that is lost.
        clusters: how many are.
        where: in the file, bytes.
        end: first byte past that.
    """

    sector: int
    clusters: int
    where: int
    end: int

    def __str__(self) -> str:
        count = self.clusters
        many = "1 cluster that lies" if count == 1 else f"{count} clusters that lie"
        return (
            f"has {many} past the end of its file (the first at {self.sector << SECTOR_SHIFT} of "
            f"the disk, {self.where:#x} of the file)"
        )


def find_lost(map: TableMap[Table], geometry: Geometry, l1: Numbers) -> Lost | None:
    """All that is lost, by the place of the first of it; None: nothing is.

    Args:
        map: of the image.
        geometry: of it.
        l1: entries of its L1 table.

    Raises:
        ImageFormatError: one table is named too often.
        OSError: a table cannot be read.
    """
    # where all of the disk and its tables would not reach nothing ever was, nor will be
    limit = map.file.size + 2 * (map.sectors << SECTOR_SHIFT) + (1 << 20)
    found = [lost for lost in _each_lost(map, geometry, l1) if lost.end <= limit]
    if not found:
        return None
    clusters = sum(lost.clusters for lost in found)
    return attrs.evolve(found[0], clusters=clusters, end=max(lost.end for lost in found))


def _each_lost(map: TableMap[Table], geometry: Geometry, l1: Numbers) -> Iterator[Lost]:
    size = geometry.table_bytes
    visits, empty = TableVisits(size), EmptyTables(map.file, size)
    for index, offset in enumerate(l1):
        if not offset or not _can_be(map, index):
            continue
        if index not in map.tables and empty.holds(offset):
            continue
        visits.visit(offset)
        table = _table(map, index, offset, size)
        sector = index << geometry.table_shift
        if table is None:
            yield Lost(sector, geometry.entry_mask + 1, offset, offset + size)
        elif max(table.entries, default=0) >= map.file.size:
            stop = min((index + 1) << geometry.table_shift, map.sectors)
            yield from _lost_in(map, geometry, table, sector, stop)


def _can_be(map: TableMap[Table], index: int) -> bool:
    """Whether a table could lie where it should at all; through others nothing is written."""
    try:
        return bool(map.table_place(index))
    except ImageFormatError:
        return False


def _table(map: TableMap[Table], index: int, offset: int, size: int) -> Table | None:
    """Past the cache; None for one that is not wholly in the file."""
    table = map.tables.get(index)
    if table is None and offset + size <= map.file.size:
        table = Table(index, offset, L2.decode(map.file.read_metadata(offset, size)), L2)
    return table


def _lost_in(
    map: TableMap[Table], geometry: Geometry, table: Table, sector: int, stop: int
) -> Iterator[Lost]:
    while sector < stop:
        try:
            run = map.run_in(table, sector, stop)
        except TapError:  # impossible in another way, and refused to whoever wants it
            sector = (sector | geometry.sector_mask) + 1
            continue
        lost = _lost_of(map, geometry, run)
        if lost is not None:
            yield lost
        sector = run.end


def _lost_of(map: TableMap[Table], geometry: Geometry, run: Run) -> Lost | None:
    """Of a run from the start of a cluster on: the clusters that begin past the end of the file."""
    if run.kind == PACKED:
        where, length = geometry.compressed(run.where)
        return Lost(run.sector, 1, where, where + length) if where >= map.file.size else None
    end = run.where + (run.nb_sectors << SECTOR_SHIFT)
    if run.kind != DATA or end <= map.file.size:
        return None
    there = max(-((run.where - map.file.size) >> geometry.cluster_bits), 0)
    sector = run.sector + (there << geometry.cluster_shift)
    if sector >= run.end:
        return None
    clusters = -(-(run.end - sector) >> geometry.cluster_shift)
    return Lost(sector, clusters, run.where + (there << geometry.cluster_bits), end)
