"""Reads: from the tables to the host file, without waiting for either."""

from __future__ import annotations

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.ondisk.entries import COMPRESSED, DATA, ZERO
from tap_qcow2.tables.l2tables import Table
from tap_qcow2.tables.mapping import Run, run_at
from tapcore import BLK_NOT_ALLOCATED, SECTOR_SHIFT, Answer, ImageFormatError, TapError


def read(clusters: Clusters, answer: Answer, sector: int, nb_sectors: int, buf: memoryview) -> int:
    """Read a range that lies inside the disk; what has to wait is answered later.

    Args:
        clusters: of the disk.
        answer: of the request.
        sector: first sector.
        nb_sectors: how many.
        buf: their content's place.

    Returns:
        How many requests were completed: what the answer returned.
    """
    finished = 0
    first, end = sector, sector + nb_sectors
    shift = clusters.geometry.table_shift
    if sector >> shift == (end - 1) >> shift:  # nearly all
        return _read_in_table(clusters, answer, sector, end, buf)
    while sector < end:
        stop = min(end, ((sector >> shift) + 1) << shift)
        part = buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]
        finished += _read_in_table(clusters, answer, sector, stop, part)
        sector = stop
    return finished


def _read_in_table(
    clusters: Clusters, answer: Answer, sector: int, stop: int, buf: memoryview
) -> int:
    """The part that one L2 table maps, as soon as that is in memory."""
    tables = clusters.metadata.tables
    index = sector >> clusters.geometry.table_shift
    try:
        table = tables.cached(index)
        if table is None:
            if not tables.offset_of(index):
                return answer(BLK_NOT_ALLOCATED, sector, stop - sector)
            table = tables.now(index)
        if table is None:
            _load(clusters, answer, sector, stop, buf)
            return 0
    except (TapError, OSError) as exc:
        return answer(clusters.failure_of(exc, sector, stop - sector), sector, stop - sector)
    return _read_by(clusters, table, answer, sector, stop, buf)


def _load(clusters: Clusters, answer: Answer, sector: int, stop: int, buf: memoryview) -> None:
    """Go on when a thread has read the table."""

    def go_on(res: int) -> int:
        if res:
            return answer(res, sector, stop - sector)
        return _read_in_table(clusters, answer, sector, stop, buf)

    clusters.metadata.tables.load(sector >> clusters.geometry.table_shift, go_on)


def _read_by(
    clusters: Clusters, table: Table, answer: Answer, sector: int, stop: int, buf: memoryview
) -> int:
    """The same, run by run, with the table."""
    finished = 0
    first = sector
    while sector < stop:
        try:
            run = run_at(clusters.decoder, table, sector, stop)
        except ImageFormatError as exc:  # of this cluster; those behind it are not concerned
            until = min((sector | clusters.geometry.sector_mask) + 1, stop)
            res = clusters.failure_of(exc, sector, until - sector)
            finished += answer(res, sector, until - sector)
            sector = until
            continue
        if run.nb_sectors == stop - first:
            return _read_run(clusters, answer, run, buf)
        at = (sector - first) << SECTOR_SHIFT
        part = buf[at : at + (run.nb_sectors << SECTOR_SHIFT)]
        finished += _read_run(clusters, answer, run, part)
        sector += run.nb_sectors
    return finished


def _read_run(clusters: Clusters, answer: Answer, run: Run, buf: memoryview) -> int:
    try:
        if run.kind == DATA:
            return clusters.host.read(run.where, buf, run.sector, answer)
        if run.kind == COMPRESSED:
            return clusters.inflater.read(run, buf, answer)
    except (TapError, OSError) as exc:
        res = clusters.failure_of(exc, run.sector, run.nb_sectors)
        return answer(res, run.sector, run.nb_sectors)
    if run.kind != ZERO:
        return answer(BLK_NOT_ALLOCATED, run.sector, run.nb_sectors)
    buf[:] = bytes(len(buf))
    return answer(0, run.sector, run.nb_sectors)
