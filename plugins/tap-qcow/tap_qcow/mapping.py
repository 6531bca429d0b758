"""From sectors of the disk to what lies there: runs of one kind, as the tables say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from tap_qcow.layout import COMPRESSED
from tap_qcow.tables import Table
from tapcore import (
    SECTOR_SHIFT,
    EmptyTables,
    Extent,
    TableVisits,
    TapError,
    content_damaged,
)

if TYPE_CHECKING:
    from tap_qcow.image import Image

HOLE: Final = 0
PLAIN: Final = 1
DEFLATED: Final = 2
MISSING: Final = 3


class Run(NamedTuple):
    """Sectors that are stored in one way.

    Attributes:
        kind: HOLE, PLAIN, DEFLATED (then inside one cluster), or MISSING: plain, in clusters that
            begin past the end of the file.
        sector: the first one.
        nb_sectors: how many.
        where: PLAIN, MISSING: the byte offset in the file; DEFLATED: the L2 entry.
    """

    kind: int
    sector: int
    nb_sectors: int
    where: int


def run_at(image: Image, table: Table, sector: int, stop: int) -> Run:
    """The run that begins at a sector.

    Args:
        image: open.
        table: that maps the sector.
        sector: the first one.
        stop: nothing from this sector on is of interest; not past what the table maps.

    Raises:
        ImageFormatError: a table entry is not possible.
    """
    geometry = image.geometry
    shift = geometry.cluster_shift
    entries = table.entries
    at = (sector >> shift) & geometry.entry_mask
    last = ((stop - 1) >> shift) & geometry.entry_mask
    skip = sector & geometry.sector_mask
    entry = entries[at]
    if entry & COMPRESSED:
        return Run(DEFLATED, sector, min(sector - skip + (1 << shift), stop) - sector, entry)
    step = geometry.cluster_size if entry else 0
    next_one, expected = at + 1, entry + step
    while next_one <= last and entries[next_one] == expected:
        next_one += 1
        expected += step
    count, kind = next_one - at, PLAIN if entry else HOLE
    if entry:
        image.check_run(entry, expected - entry)
        if expected - step >= image.file.size:
            kind, count = _there(image, entry, count)
    until = min(sector - skip + (count << shift), stop)
    return Run(kind, sector, until - sector, entry + (skip << SECTOR_SHIFT) if entry else 0)


def _there(image: Image, entry: int, count: int) -> tuple[int, int]:
    """Of clusters side by side, of which the last begin past the end of the file: the first ones.

    Returns:
        PLAIN and how many are there, or MISSING and all.
    """
    inside = -((entry - image.file.look_again()) // image.geometry.cluster_size)
    return (PLAIN, min(inside, count)) if inside > 0 else (MISSING, count)


def plain_place(image: Image, sector: int, nb_sectors: int) -> int:
    """The short way to where a range lies in the file (bytes), for nearly every small request.

    Returns:
        The offset, if the range is one plain run and its table is in memory; 0 where it is not, or
        where `run_at` has to say what is wrong.
    """
    geometry = image.geometry
    table = image.tables.get(sector >> geometry.table_shift)
    if table is None:
        return 0
    at = (sector >> geometry.cluster_shift) & geometry.entry_mask
    skip = sector & geometry.sector_mask
    more = (skip + nb_sectors - 1) >> geometry.cluster_shift
    entries = table.entries
    entry, size = entries[at], geometry.cluster_size
    if entry < image.places_end or entry + more * size >= image.file.size or entry & 511:
        return 0
    if more:
        wanted = range(entry + size, entry + more * size + 1, size)
        if at + more > geometry.entry_mask or entries[at + 1 : at + more + 1].tolist() != [*wanted]:
            return 0
    return entry + (skip << SECTOR_SHIFT)


def runs(image: Image, sector: int, nb_sectors: int) -> Iterator[Run]:
    """The runs of a range, in order; waits for tables that are not in memory.

    Raises:
        ImageFormatError: a table entry is not possible, or one table is named too often.
        OSError: a table cannot be read.
    """
    end = sector + nb_sectors
    size = image.geometry.table_bytes
    visits = TableVisits(size)
    while sector < end:
        index = sector >> image.geometry.table_shift
        stop = _past_empty_tables(image, index, end, EmptyTables(image.file, size))
        if stop > sector:
            yield Run(HOLE, sector, stop - sector, 0)
            sector = stop
            continue
        visits.visit(image.tables.l1[index])
        table = image.tables.wait(index)
        stop = min(end, (index + 1) << image.geometry.table_shift)
        while sector < stop:
            run = run_at(image, table, sector, stop)
            yield run
            sector += run.nb_sectors


def _past_empty_tables(image: Image, index: int, end: int, empty: EmptyTables | None = None) -> int:
    """The sector up to which the L1 entries from one on are 0, or name tables in holes.

    Args:
        image: open.
        index: of the first entry.
        end: sector; what lies behind it is of no interest.
        empty: knows the holes of the file; None: only entries of 0 count.
    """
    l1, shift = image.tables.l1, image.geometry.table_shift
    last = (end - 1) >> shift
    while index <= last:
        offset = l1[index]
        if offset and (empty is None or not _in_hole(image, index, offset, empty)):
            break
        index += 1
    return min(end, index << shift)


def _in_hole(image: Image, index: int, offset: int, empty: EmptyTables) -> bool:
    if offset & 511 or offset < image.places_end or image.tables.has(index):
        return False
    return empty.holds(offset)


def each_run(
    image: Image,
    sector: int,
    nb_sectors: int,
    visit: Callable[[Run], int],
    fail: Callable[[int, int, int], int],
) -> int:
    """Visit the runs of a range; those whose table has to be read from disk are visited later.

    Args:
        image: open.
        sector: first sector.
        nb_sectors: how many.
        visit: called with each run; returns how many requests it finished.
        fail: the same, for what no run can be told of: `fail(-errno, sector, nb_sectors)`.

    Returns:
        How many requests were finished inside this call.
    """
    end = sector + nb_sectors
    finished = 0
    while sector < end:
        index = sector >> image.geometry.table_shift
        if image.tables.l1[index]:
            stop = min(end, (index + 1) << image.geometry.table_shift)
            finished += _each_in_table(image, index, sector, stop, visit, fail)
        else:
            stop = _past_empty_tables(image, index, end)
            finished += visit(Run(HOLE, sector, stop - sector, 0))
        sector = stop
    return finished


def _each_in_table(
    image: Image,
    index: int,
    sector: int,
    stop: int,
    visit: Callable[[Run], int],
    fail: Callable[[int, int, int], int],
) -> int:
    try:
        table = image.tables.now(index)
    except TapError as exc:
        res = content_damaged(image.dd, sector, stop - sector, exc.message)
        return fail(res, sector, stop - sector)
    if table is None:

        def go_on(res: int) -> int:
            if res:
                return fail(res, sector, stop - sector)
            return _each_in_table(image, index, sector, stop, visit, fail)

        image.tables.load(index, go_on)
        return 0
    finished = 0
    while sector < stop:
        try:
            run = run_at(image, table, sector, stop)
        except TapError as exc:  # of this cluster; those behind it are not concerned
            until = min((sector | image.geometry.sector_mask) + 1, stop)
            res = content_damaged(image.dd, sector, until - sector, exc.message)
            finished += fail(res, sector, until - sector)
            sector = until
            continue
        finished += visit(run)
        sector += run.nb_sectors
    return finished


def extents(image: Image, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """As `td_extents` yields them; encrypted content is data that lies nowhere plain."""
    file = image.file
    for run in runs(image, sector, nb_sectors):
        if run.kind == HOLE:
            yield Extent(run.sector, run.nb_sectors, "unallocated")
        elif run.kind == DEFLATED:
            gone = image.geometry.compressed(run.where)[0] >= file.size
            yield Extent(run.sector, run.nb_sectors, "compressed", missing=gone)
        elif run.kind == MISSING:
            name = "" if image.header.encrypted else file.path
            where = run.where if name else 0
            yield Extent(run.sector, run.nb_sectors, "data", None, name, where, missing=True)
        elif image.header.encrypted or run.where + (run.nb_sectors << SECTOR_SHIFT) > file.size:
            yield Extent(run.sector, run.nb_sectors, "data")
        else:
            yield Extent(run.sector, run.nb_sectors, "data", file.fd, file.path, run.where)
