"""What lies where in the image, exactly, without reading data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from tap_qcow2.data.missing import lies_past_end
from tap_qcow2.ondisk.entries import COMPRESSED, DATA, ZERO
from tap_qcow2.tables.mapping import Run, runs_of
from tapcore import SECTOR_SHIFT, Extent

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def extents(image: Image, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """The extents of a range of sectors, in order.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: a table cannot be read.
    """
    hidden = image.header.crypt_method != 0
    path = image.header.data_file if image.host.file is None else image.host.file.path
    for run in runs_of(image.tables, sector, nb_sectors):
        if run.kind == DATA:
            yield from _data(image, run, path, hidden=hidden)
        elif run.kind == ZERO:
            if run.where:
                yield Extent(run.sector, run.nb_sectors, "zero", None, path, run.where, True)
            else:
                yield Extent(run.sector, run.nb_sectors, "zero")
        elif run.kind == COMPRESSED:
            gone = lies_past_end(image.clusters, run.where)
            yield Extent(run.sector, run.nb_sectors, "compressed", missing=gone)
        else:
            yield Extent(run.sector, run.nb_sectors, "unallocated")


def _data(image: Image, run: Run, path: str, *, hidden: bool) -> Iterator[Extent]:
    """What lies in the file, what its last cluster lacks, and what it is too short for."""
    file, length = image.host.file, run.nb_sectors << SECTOR_SHIFT
    if file is None or run.where + length <= file.size:
        fd = None if file is None else file.fd
        yield _plain(run.sector, run.nb_sectors, fd, path, run.where, hidden=hidden)
        return
    there = image.host.bytes_inside(run.where, length) >> SECTOR_SHIFT
    whole = max(min((file.size - run.where) >> SECTOR_SHIFT, there), 0)
    if whole:
        yield _plain(run.sector, whole, file.fd, path, run.where, hidden=hidden)
    if whole < there:
        yield Extent(run.sector + whole, there - whole, "data")
    if there < run.nb_sectors:
        where = run.where + (there << SECTOR_SHIFT)
        extent = _plain(
            run.sector + there, run.nb_sectors - there, None, path, where, hidden=hidden
        )
        yield attrs.evolve(extent, missing=True)


def _plain(
    sector: int, nb_sectors: int, fd: int | None, path: str, where: int, *, hidden: bool
) -> Extent:
    if hidden:
        return Extent(sector, nb_sectors, "data")
    return Extent(sector, nb_sectors, "data", fd, path, where)
