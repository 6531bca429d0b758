"""From sectors of the disk to what lies there: runs of one kind, as the L2 tables say.

Source: qcow2.rst, "Cluster mapping", "Extended L2 entries".
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from tap_qcow2.ondisk import bigendian, layout
from tapcore import SECTOR_SHIFT, EmptyTables, ImageFormatError, TableVisits

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tap_qcow2.ondisk.bigendian import Words
    from tap_qcow2.tables.l2tables import L2Tables, Table

UNALLOCATED: Final = 0
ZERO: Final = 1
DATA: Final = 2
COMPRESSED: Final = 3


_MANY: Final = 256
_NOTHING: Final = bigendian.zeroes(_MANY)


class Run(NamedTuple):
    """Sectors that are stored in one way.

    Attributes:
        kind: UNALLOCATED, ZERO, DATA or COMPRESSED.
        sector: the first one.
        nb_sectors: how many.
        where: for DATA the host offset in bytes; for COMPRESSED the L2 entry; for ZERO the host
            offset of the space that is kept for it, or 0.
    """

    kind: int
    sector: int
    nb_sectors: int
    where: int


def runs(image: Image, sector: int, nb_sectors: int) -> Iterator[Run]:
    """The runs of a range, in order; reads tables that are not in memory, waiting for them.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: a table cannot be read.
    """
    return runs_of(image, image.tables, sector, nb_sectors)


def runs_of(image: Image, tables: L2Tables, sector: int, nb_sectors: int) -> Iterator[Run]:
    """The same by other tables than the disk's own: those of a snapshot.

    Raises:
        ImageFormatError, OSError: as `runs`; or one table is named too often.
    """
    end = sector + nb_sectors
    visits = TableVisits(image.geometry.cluster_size)
    while sector < end:
        index = sector >> image.table_shift
        last = (end - 1) >> image.table_shift
        none = _tables_without_content(image, tables, index, last + 1)
        if none:
            stop = min(end, (index + none) << image.table_shift)
            yield Run(UNALLOCATED, sector, stop - sector, 0)
            sector = stop
            continue
        stop = min(end, (index + 1) << image.table_shift)
        try:
            visits.visit(tables.offset_of(index))
            table = tables.wait(index)
            while sector < stop:
                run = run_at(image, table, sector, stop)
                yield run
                sector += run.nb_sectors
        except ImageFormatError as exc:
            exc.message = f"{exc.message}, at {sector << SECTOR_SHIFT} of the disk"
            raise


def _tables_without_content(image: Image, tables: L2Tables, index: int, stop: int) -> int:
    """How many L1 entries from one on name no table, or one that lies in a hole of the file."""
    l1, start = tables.l1, index
    size = image.geometry.cluster_size
    empty = EmptyTables(image.file, size)
    while index < stop:
        if index >= len(l1):
            return stop - start
        offset = l1[index] & layout.OFFSET_MASK
        if offset:
            if offset & (size - 1) or tables.has(index) or not empty.holds(offset):
                break
            index += 1
            continue
        index += 1
        while index + _MANY <= stop and l1[index : index + _MANY] == _NOTHING:
            index += _MANY
    return index - start


def run_at(image: Image, table: Table, sector: int, stop: int) -> Run:
    """The run that begins at a sector, as far as it goes on in this table.

    Args:
        image: open.
        table: that maps the sector.
        sector: the first one.
        stop: nothing from this sector on is of interest; not past what the table maps.

    Raises:
        ImageFormatError: a table entry is not possible.
    """
    if image.extended:
        return _extended_run(image, table, sector, stop)
    entries = table.entries
    at = (sector >> image.cluster_shift) & image.entry_mask
    last = ((stop - 1) >> image.cluster_shift) & image.entry_mask
    skip = sector & image.sector_mask
    kind, where = standard_entry(image, entries[at])
    more = 1
    if kind == DATA:
        step = image.geometry.cluster_size
        want = entries[at] & layout.OFFSET_MASK
        mask = layout.OFFSET_MASK | layout.NOT_PLAIN
        while at + more <= last and entries[at + more] & mask == want + more * step:
            more += 1
        where += skip << SECTOR_SHIFT
    elif kind != COMPRESSED:
        more = _same(entries, at, last, image, kind, where)
        if where:
            where += skip << SECTOR_SHIFT
    until = min(sector - skip + (more << image.cluster_shift), stop)
    return Run(kind, sector, until - sector, where)


def _same(entries: Words, at: int, last: int, image: Image, kind: int, where: int) -> int:
    """How many clusters are zero, or unallocated, like the first one."""
    more = 1
    if kind == UNALLOCATED:  # mostly entries of zero: many at once
        while entries[at + more : at + more + _MANY] == _NOTHING and at + more + _MANY <= last:
            more += _MANY
    step = image.geometry.cluster_size if where else 0
    while at + more <= last:
        try:
            found = standard_entry(image, entries[at + more])
        except ImageFormatError:  # is told to whoever asks for that cluster
            break
        if found != (kind, where + more * step if where else 0):
            break
        more += 1
    return more


def standard_entry(image: Image, entry: int) -> tuple[int, int]:
    """Kind of a standard L2 entry, and its `Run.where`.

    Raises:
        ImageFormatError: it is not possible.
    """
    if entry & layout.COMPRESSED:
        return COMPRESSED, entry
    host = entry & layout.OFFSET_MASK
    if host & (image.geometry.cluster_size - 1):
        raise bad_entry(entry)
    if entry & layout.ZERO and image.header.version >= 3:
        return ZERO, host
    if host or (entry & layout.COPIED and image.data is not image.file):
        return DATA, host  # cluster 0 of an external data file lies at offset 0
    return UNALLOCATED, 0


def bad_entry(entry: int) -> ImageFormatError:
    """What to raise for an L2 entry that cannot be true."""
    return ImageFormatError(f"has an impossible L2 entry ({entry:#x})", errno=errno.EIO)


# ---- extended entries ------------------------------------------------------------------------


def subcluster_kind(entry: int, bitmap: int, number: int) -> int:
    """Kind of one subcluster of a cluster that is not compressed."""
    if bitmap >> (32 + number) & 1:
        return ZERO
    return DATA if bitmap >> number & 1 else UNALLOCATED


def check_extended(image: Image, entry: int, bitmap: int) -> None:
    """Raise ImageFormatError for an extended entry that is not possible."""
    if entry & layout.COMPRESSED:
        return  # its bitmap says nothing, whatever it is
    host = entry & layout.OFFSET_MASK
    if host & (image.geometry.cluster_size - 1) or (bitmap & bitmap >> 32) & layout.ALL_ALLOCATED:
        raise bad_entry(entry)
    if bitmap & layout.ALL_ALLOCATED and not host and image.data is image.file:
        raise bad_entry(entry)


def _extended_run(image: Image, table: Table, sector: int, stop: int) -> Run:
    entries = table.entries
    at = ((sector >> image.cluster_shift) & image.entry_mask) * 2
    shift = image.cluster_shift - 5
    start, kind, where, expected = sector, -1, 0, 0
    while sector < stop:
        entry, bitmap = entries[at], entries[at + 1]
        try:
            check_extended(image, entry, bitmap)
        except ImageFormatError:
            if kind >= 0:  # is told to whoever asks for that cluster
                break
            raise
        skip = sector & image.sector_mask
        if entry & layout.COMPRESSED:
            if kind >= 0:
                break
            until = min(sector - skip + image.geometry.cluster_sectors, stop)
            return Run(COMPRESSED, sector, until - sector, entry)
        host = entry & layout.OFFSET_MASK
        here = subcluster_kind(entry, bitmap, skip >> shift)
        has_place = host or (here == DATA)
        place = host + (skip << SECTOR_SHIFT) if has_place and here != UNALLOCATED else 0
        if kind < 0:
            kind, where, expected = here, place, place
        elif here != kind or place != expected:
            break
        step = (1 << shift) - (skip & ((1 << shift) - 1))
        sector += step
        if place or (here == DATA):
            expected += step << SECTOR_SHIFT
        if not sector & image.sector_mask:
            at += 2
    return Run(kind, start, min(sector, stop) - start, where)
