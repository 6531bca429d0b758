"""The runs of a range of the disk, in order: waited for, or visited as their tables arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tap_qcow.mapping import DEFLATED, HOLE, MISSING, ClusterMap, Run
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    EmptyTables,
    Extent,
    TableVisits,
    TapError,
    content_damaged,
)

Visit = Callable[[Run], int]
"""Called with each run; returns how many requests it finished."""

Fail = Callable[[int, int, int], int]
"""The same, for what no run can be told of: `fail(-errno, sector, nb_sectors)`."""


def each_run(
    map: ClusterMap, dd: DiskDriver, sector: int, nb_sectors: int, visit: Visit, fail: Fail
) -> int:
    """Visit the runs of a range; those whose table has to be read from disk are visited later.

    Args:
        map: of the image.
        dd: the image in its chain, which is told of damage.
        sector: first sector.
        nb_sectors: how many.
        visit: called with each run.
        fail: called where there is none.

    Returns:
        How many requests were finished inside this call.
    """
    end = sector + nb_sectors
    finished = 0
    while sector < end:
        index = sector >> map.geometry.table_shift
        if map.tables.l1[index]:
            stop = min(end, (index + 1) << map.geometry.table_shift)
            finished += _each_in_table(map, dd, sector, stop, visit, fail)
        else:
            stop = _past_empty_tables(map, index, end)
            finished += visit(Run(HOLE, sector, stop - sector, 0))
        sector = stop
    return finished


def _each_in_table(
    map: ClusterMap, dd: DiskDriver, sector: int, stop: int, visit: Visit, fail: Fail
) -> int:
    index = sector >> map.geometry.table_shift
    try:
        table = map.tables.now(index)
    except TapError as exc:
        res = content_damaged(dd, sector, stop - sector, exc.message)
        return fail(res, sector, stop - sector)
    if table is None:

        def go_on(res: int) -> int:
            if res:
                return fail(res, sector, stop - sector)
            return _each_in_table(map, dd, sector, stop, visit, fail)

        map.tables.load(index, go_on)
        return 0
    finished = 0
    while sector < stop:
        try:
            run = map.run(table, sector, stop)
        except TapError as exc:  # of this cluster; those behind it are not concerned
            until = min((sector | map.geometry.sector_mask) + 1, stop)
            res = content_damaged(dd, sector, until - sector, exc.message)
            finished += fail(res, sector, until - sector)
            sector = until
            continue
        finished += visit(run)
        sector += run.nb_sectors
    return finished


def runs(map: ClusterMap, sector: int, nb_sectors: int) -> Iterator[Run]:
    """The runs of a range, in order; waits for tables that are not in memory.

    Raises:
        ImageFormatError: a table entry is not possible, or one table is named too often.
        OSError: a table cannot be read.
    """
    end = sector + nb_sectors
    size = map.geometry.table_bytes
    visits = TableVisits(size)
    while sector < end:
        index = sector >> map.geometry.table_shift
        stop = _past_empty_tables(map, index, end, EmptyTables(map.file, size))
        if stop > sector:
            yield Run(HOLE, sector, stop - sector, 0)
            sector = stop
            continue
        visits.visit(map.tables.l1[index])
        table = map.tables.wait(index)
        stop = min(end, (index + 1) << map.geometry.table_shift)
        while sector < stop:
            run = map.run(table, sector, stop)
            yield run
            sector += run.nb_sectors


def _past_empty_tables(
    map: ClusterMap, index: int, end: int, empty: EmptyTables | None = None
) -> int:
    """The sector up to which the L1 entries from one on are 0, or name tables in holes.

    Args:
        map: of the image.
        index: of the first entry.
        end: sector; what lies behind it is of no interest.
        empty: knows the holes of the file; None: only entries of 0 count.
    """
    l1, shift = map.tables.l1, map.geometry.table_shift
    last = (end - 1) >> shift
    while index <= last:
        offset = l1[index]
        if offset and (empty is None or not _in_hole(map, index, offset, empty)):
            break
        index += 1
    return min(end, index << shift)


def _in_hole(map: ClusterMap, index: int, offset: int, empty: EmptyTables) -> bool:
    if offset & 511 or offset < map.metadata_end or map.tables.has(index):
        return False
    return empty.holds(offset)


def extents(map: ClusterMap, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """As `td_extents` yields them; encrypted content is data that lies nowhere plain."""
    file, encrypted = map.file, map.header.encrypted
    for run in runs(map, sector, nb_sectors):
        if run.kind == HOLE:
            yield Extent(run.sector, run.nb_sectors, "unallocated")
        elif run.kind == DEFLATED:
            gone = map.geometry.compressed(run.where)[0] >= file.size
            yield Extent(run.sector, run.nb_sectors, "compressed", missing=gone)
        elif run.kind == MISSING:
            name = "" if encrypted else file.path
            where = run.where if name else 0
            yield Extent(run.sector, run.nb_sectors, "data", None, name, where, missing=True)
        elif encrypted or run.where + (run.nb_sectors << SECTOR_SHIFT) > file.size:
            yield Extent(run.sector, run.nb_sectors, "data")
        else:
            yield Extent(run.sector, run.nb_sectors, "data", file.fd, file.path, run.where)
