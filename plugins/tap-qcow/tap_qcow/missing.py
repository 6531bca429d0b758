"""Clusters that lie past the end of the file: somebody cut it, or it never grew so far.

The format counts nothing, and new clusters go to the end of the file: just there where what is lost
should lie. So all tables are looked at before the first change.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import attrs

from tap_qcow.entries import Entries, unpack_entries
from tap_qcow.mapping import DEFLATED, MISSING, ClusterMap
from tap_qcow.space import Space
from tap_qcow.tables import Table
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    EmptyTables,
    ImageFormatError,
    TableVisits,
    TapError,
)


def make_room_for_lost(dd: DiskDriver, map: ClusterMap, space: Space) -> None:
    """Refuse to write an image that has lost clusters; a server goes on with holes in their place.

    Args:
        dd: the image in its chain.
        map: of it.
        space: where new clusters go.

    Raises:
        ImageFormatError: clusters are missing; not for a server.
        OSError: a table cannot be read, or the file not be made longer.
    """
    count, end, first = 0, 0, None
    # where all of the disk and its tables would not reach nothing ever was, nor will be
    limit = map.file.size + 2 * (map.sectors << SECTOR_SHIFT) + (1 << 20)
    for lost in _missing(map):
        if lost.end > limit:
            continue
        first = first or lost
        count += lost.clusters
        end = max(end, lost.end)
    if first is None:
        return
    many = "1 cluster that lies" if count == 1 else f"{count} clusters that lie"
    text = (
        f"has {many} past the end of its file (the first at {first.sector << SECTOR_SHIFT} of the "
        f"disk, {first.where:#x} of the file)"
    )
    if dd.options.missing == "error":
        raise ImageFormatError(
            f"{text}: it is damaged, and not written; convert --salvage copies what is there",
            errno=errno.EIO,
        )
    if dd.td_state is not None:
        dd.td_state.losses.log_zeroed(dd.name, text)
    map.file.truncate_up(end)
    space.end = max(space.end, end)


@attrs.frozen
class _Lost:
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


def _missing(map: ClusterMap) -> Iterator[_Lost]:
    geometry = map.geometry
    size = geometry.table_bytes
    visits, empty = TableVisits(size), EmptyTables(map.file, size)
    for index, offset in enumerate(map.tables.l1):
        if not offset or not _can_be(map, offset):
            continue
        if not map.tables.has(index) and empty.holds(offset):
            continue
        visits.visit(offset)
        entries = _entries(map, index, offset)
        sector = index << geometry.table_shift
        if entries is None:
            yield _Lost(sector, geometry.entry_mask + 1, offset, offset + geometry.table_bytes)
        elif max(entries, default=0) >= map.file.size:
            stop = min((index + 1) << geometry.table_shift, map.sectors)
            yield from _in_table(map, Table(index, offset, entries), sector, stop)


def _can_be(map: ClusterMap, offset: int) -> bool:
    """Whether a table could lie there at all; through others nothing is written."""
    try:
        map.check_clusters(offset, map.geometry.table_bytes)
    except ImageFormatError:
        return False
    return True


def _in_table(map: ClusterMap, table: Table, sector: int, stop: int) -> Iterator[_Lost]:
    shift = map.geometry.cluster_shift
    while sector < stop:
        try:
            run = map.run(table, sector, stop)
        except TapError:  # impossible in another way, and refused to whoever wants it
            sector = ((sector >> shift) + 1) << shift
            continue
        length = run.nb_sectors << SECTOR_SHIFT
        if run.kind == MISSING:
            yield _Lost(sector, -(-run.nb_sectors >> shift), run.where, run.where + length)
        elif run.kind == DEFLATED:
            where, size = map.geometry.compressed(run.where)
            if where >= map.file.size:
                yield _Lost(sector, 1, where, where + size)
        sector += run.nb_sectors


def _entries(map: ClusterMap, index: int, offset: int) -> Entries | None:
    """Of a table, past the cache; None for one that is not wholly in the file."""
    table = map.tables.get(index)
    if table is not None:
        return table.entries
    size = map.geometry.table_bytes
    if offset + size > map.file.size:
        return None
    return unpack_entries(map.file.read_metadata(offset, size))
