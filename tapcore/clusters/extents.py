"""What lies where in an image, exactly, without reading content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tapcore.clusters.mapped import MappedDisk
from tapcore.clusters.runs import DATA, HOLE, NOWHERE, PACKED, ZERO, Run
from tapcore.constants import SECTOR_SHIFT
from tapcore.files import ImageFile
from tapcore.interface.extent import Extent


def extents(disk: MappedDisk, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """The extents of a range, as `td_extents` yields them; waits for tables.

    Args:
        disk: by the map of which.
        sector: of the map.
        nb_sectors: how many.

    Raises:
        ImageFormatError: a table, or an entry, is damaged.
        OSError: a table cannot be read.
    """
    for run in _joined(disk, disk.map.runs(sector, sector + nb_sectors)):
        yield from _of_run(disk, run)


def _joined(disk: MappedDisk, runs: Iterable[Run]) -> Iterator[Run]:
    """Runs, with compressed clusters that follow each other as one, as far as one table goes.

    Its token is that of the first one, which is there as the others are, or is missing as they are.
    """
    held: Run | None = None
    end, missing, limit = 0, False, 0
    for run in runs:
        if run.kind != PACKED:
            if held is not None:
                yield held._replace(nb_sectors=end - held.sector)
                held = None
            yield run
            continue
        is_missing = disk.map.missing(run)
        if held is not None and (is_missing != missing or run.sector >= limit):
            yield held._replace(nb_sectors=end - held.sector)
            held = None
        if held is None:
            held, missing = run, is_missing
            limit = disk.table_end(run.sector, disk.map.sectors)
        end = run.end
    if held is not None:
        yield held._replace(nb_sectors=end - held.sector)


def _of_run(disk: MappedDisk, run: Run) -> Iterator[Extent]:
    kind, sector, nb_sectors, where, _ = run
    sector += disk.start
    if kind == DATA:
        yield from _data(disk, run)
    elif kind == HOLE:
        yield Extent(sector, nb_sectors, "unallocated")
    elif kind != ZERO:
        yield Extent(sector, nb_sectors, "compressed", missing=disk.map.missing(run))
    elif where == NOWHERE:
        yield Extent(sector, nb_sectors, "zero")
    else:
        yield Extent(sector, nb_sectors, "zero", None, disk.map.data.path, where, allocated=True)


def _data(disk: MappedDisk, run: Run) -> Iterator[Extent]:
    """What lies in the file, what its last cluster lacks, and what it is too short for."""
    file, (_, sector, nb_sectors, where, _) = disk.map.data, run
    sector += disk.start
    there = disk.content.bytes_there(run) >> SECTOR_SHIFT
    whole = max(min((file.size - where) >> SECTOR_SHIFT, there), 0)
    if whole and disk.map.shows_holes:
        yield from _with_holes(file, sector, whole, where >> SECTOR_SHIFT)
    elif whole:
        yield _plain(disk, sector, whole, where, missing=False)
    if whole < there:
        yield Extent(sector + whole, there - whole, "data")
    if there < nb_sectors:
        at = where + (there << SECTOR_SHIFT)
        yield _plain(disk, sector + there, nb_sectors - there, at, missing=True)


def _with_holes(file: ImageFile, sector: int, nb_sectors: int, place: int) -> Iterator[Extent]:
    for each in file.extents(place, nb_sectors):
        at = sector + each.sector - place
        yield Extent(at, each.nb_sectors, each.kind, each.fd, each.filename, each.offset)


def _plain(disk: MappedDisk, sector: int, nb_sectors: int, where: int, *, missing: bool) -> Extent:
    file = disk.map.data
    if disk.map.encrypted:  # lies nowhere plain
        return Extent(sector, nb_sectors, "data", missing=missing)
    fd = None if missing else file.fd
    return Extent(sector, nb_sectors, "data", fd, file.path, where, missing=missing)
