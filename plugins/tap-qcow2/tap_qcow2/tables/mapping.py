"""From sectors of the disk to what lies there: runs of one kind, as the L2 tables say.

Source: qcow2.rst, "Cluster mapping", "Extended L2 Entries".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import (
    COMPRESSED,
    DATA,
    UNALLOCATED,
    compressed,
    offset_of,
    subcluster_kind,
)
from tap_qcow2.tables.l2tables import L2Tables, Table
from tapcore import SECTOR_SHIFT, EmptyTables, ImageFormatError, TableVisits

_MANY: Final = 256
_NOTHING: Final = bigendian.zeroes(_MANY)


class Run(NamedTuple):
    """Sectors that are stored in one way.

    Attributes:
        kind: UNALLOCATED, ZERO, DATA or COMPRESSED, see `entries`.
        sector: the first one.
        nb_sectors: how many.
        where: for DATA the host offset in bytes; for COMPRESSED the L2 entry; for ZERO the host
            offset of the space that is kept for it, or 0.
    """

    kind: int
    sector: int
    nb_sectors: int
    where: int


def runs_of(tables: L2Tables, sector: int, nb_sectors: int) -> Iterator[Run]:
    """The runs of a range, in order; reads tables that are not in memory, waiting for them.

    Raises:
        ImageFormatError: a table entry is not possible, or one table is named too often.
        OSError: a table cannot be read.
    """
    end = sector + nb_sectors
    geometry = tables.decoder.geometry
    shift = geometry.table_shift
    visits = TableVisits(geometry.cluster_size)
    while sector < end:
        index = sector >> shift
        none = _tables_without_content(tables, index, ((end - 1) >> shift) + 1)
        if none:
            stop = min(end, (index + none) << shift)
            yield Run(UNALLOCATED, sector, stop - sector, 0)
            sector = stop
            continue
        stop = min(end, (index + 1) << shift)
        try:
            visits.visit(tables.offset_of(index))
            table = tables.wait(index)
            while sector < stop:
                run = run_at(tables.decoder, table, sector, stop)
                yield run
                sector += run.nb_sectors
        except ImageFormatError as exc:
            exc.message = f"{exc.message}, at {sector << SECTOR_SHIFT} of the disk"
            raise


def _tables_without_content(tables: L2Tables, index: int, stop: int) -> int:
    """How many L1 entries from one on name no table, or one that lies in a hole of the file."""
    l1, start = tables.l1, index
    size = tables.decoder.geometry.cluster_size
    empty = EmptyTables(tables.file, size)
    while index < stop:
        if index >= len(l1):
            return stop - start
        offset = offset_of(l1[index])
        if offset:
            if offset & (size - 1) or tables.has(index) or not empty.holds(offset):
                break
            index += 1
            continue
        index += 1
        while index + _MANY <= stop and l1[index : index + _MANY] == _NOTHING:
            index += _MANY
    return index - start


def run_at(decoder: Decoder, table: Table | None, sector: int, stop: int) -> Run:
    """The run that begins at a sector, as far as it goes on in this table.

    Args:
        decoder: of the image's entries.
        table: that maps the sector; None where no table does.
        sector: the first one.
        stop: nothing from this sector on is of interest; not past what the table maps.

    Raises:
        ImageFormatError: a table entry is not possible.
    """
    if table is None:
        return Run(UNALLOCATED, sector, stop - sector, 0)
    geometry = decoder.geometry
    if geometry.extended:
        return _extended_run(decoder, table.entries, sector, stop)
    shift = geometry.cluster_shift
    at = (sector >> shift) & geometry.entry_mask
    last = ((stop - 1) >> shift) & geometry.entry_mask
    skip = sector & geometry.sector_mask
    kind, where, count = decoder.run(table.entries, at, last)
    if kind == DATA or (where and kind != COMPRESSED):
        where += skip << SECTOR_SHIFT
    until = min(sector - skip + (count << shift), stop)
    return Run(kind, sector, until - sector, where)


def _extended_run(decoder: Decoder, entries: Words, sector: int, stop: int) -> Run:
    """The same, by subclusters, of which each may be stored in another way."""
    geometry = decoder.geometry
    at = ((sector >> geometry.cluster_shift) & geometry.entry_mask) * 2
    unit = geometry.unit >> SECTOR_SHIFT
    start, kind, where, expected = sector, -1, 0, 0
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
            return Run(COMPRESSED, sector, until - sector, entry)
        here = subcluster_kind(bitmap, skip // unit)
        place = _place(offset_of(entry), here, skip << SECTOR_SHIFT)
        if kind < 0:
            kind, where, expected = here, place, place
        elif here != kind or place != expected:
            break
        step = unit - skip % unit
        sector += step
        if place or here == DATA:
            expected += step << SECTOR_SHIFT
        if not sector & geometry.sector_mask:
            at += 2
    return Run(kind, start, min(sector, stop) - start, where)


def _place(host: int, kind: int, skip: int) -> int:
    """Host offset of something in a cluster at a host offset; 0 where it has no space (bytes)."""
    if kind == DATA or (host and kind != UNALLOCATED):
        return host + skip
    return 0
