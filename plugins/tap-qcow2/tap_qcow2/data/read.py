"""Reads: from the tables to the host file, without waiting for either."""

from __future__ import annotations

from typing import Any

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.data.hostdata import Answer
from tap_qcow2.ondisk.entries import COMPRESSED, DATA, ZERO
from tap_qcow2.tables.l2tables import Table
from tap_qcow2.tables.mapping import Run, run_at
from tapcore import (
    BLK_NOT_ALLOCATED,
    SECTOR_SHIFT,
    DiskDriver,
    ImageFormatError,
    TapError,
    TdCallback,
)


def read(
    clusters: Clusters,
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Read a range that lies inside the disk; what has to wait is answered later.

    Args:
        clusters: of the disk.
        dd: as the hook's.
        sector: first sector.
        nb_sectors: how many.
        buf: their content's place.
        cb: as the hook's.
        id: as the hook's.
        prv: as the hook's.

    Returns:
        How many requests were completed: what the callbacks returned.
    """
    finished = 0
    end = sector + nb_sectors
    first = sector
    shift = clusters.geometry.table_shift
    if sector >> shift == (end - 1) >> shift:  # nearly all
        answer = (cb, dd, sector, nb_sectors, id, prv)
        return _read_in_table(clusters, sector >> shift, buf, answer)
    while sector < end:
        index = sector >> shift
        stop = min(end, (index + 1) << shift)
        part = buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]
        finished += _read_in_table(clusters, index, part, (cb, dd, sector, stop - sector, id, prv))
        sector = stop
    return finished


def _read_in_table(clusters: Clusters, index: int, buf: memoryview, answer: Answer) -> int:
    """The part that one L2 table maps, as soon as that is in memory."""
    cb, dd, sector, nb_sectors, id, prv = answer
    tables = clusters.metadata.tables
    done: int
    try:
        table = tables.cached(index)
        if table is None:
            if not tables.offset_of(index):
                done = cb(dd, BLK_NOT_ALLOCATED, sector, nb_sectors, id, prv)
                return done
            table = tables.now(index)
        if table is None:

            def go_on(res: int) -> int:
                if res:
                    failed: int = cb(dd, res, sector, nb_sectors, id, prv)
                    return failed
                return _read_in_table(clusters, index, buf, answer)

            tables.load(index, go_on)
            return 0
    except (TapError, OSError) as exc:
        return _fail(clusters, exc, answer)
    return _read_by(clusters, table, buf, answer)


def _read_by(clusters: Clusters, table: Table, buf: memoryview, answer: Answer) -> int:
    """The same, run by run, with the table."""
    cb, dd, sector, nb_sectors, id, prv = answer
    finished = 0
    first, stop = sector, sector + nb_sectors
    while sector < stop:
        try:
            run = run_at(clusters.decoder, table, sector, stop)
        except ImageFormatError as exc:  # of this cluster; those behind it are not concerned
            until = min((sector | clusters.geometry.sector_mask) + 1, stop)
            finished += _fail(clusters, exc, (cb, dd, sector, until - sector, id, prv))
            sector = until
            continue
        if run.nb_sectors == nb_sectors:
            return _read_run(clusters, run, buf, answer)
        at = (sector - first) << SECTOR_SHIFT
        part = buf[at : at + (run.nb_sectors << SECTOR_SHIFT)]
        finished += _read_run(clusters, run, part, (cb, dd, sector, run.nb_sectors, id, prv))
        sector += run.nb_sectors
    return finished


def _read_run(clusters: Clusters, run: Run, buf: memoryview, answer: Answer) -> int:
    cb, dd, sector, nb_sectors, id, prv = answer
    done: int
    try:
        if run.kind == DATA:
            return clusters.host.read(run.where, buf, answer)
        if run.kind == COMPRESSED:
            return clusters.inflater.read(run, buf, answer)
    except (TapError, OSError) as exc:
        return _fail(clusters, exc, answer)
    if run.kind == ZERO:
        buf[:] = bytes(len(buf))
        done = cb(dd, 0, sector, nb_sectors, id, prv)
        return done
    done = cb(dd, BLK_NOT_ALLOCATED, sector, nb_sectors, id, prv)
    return done


def _fail(clusters: Clusters, exc: TapError | OSError, answer: Answer) -> int:
    cb, dd, sector, nb_sectors, id, prv = answer
    res = clusters.failure_of(exc, sector, nb_sectors)
    done: int = cb(dd, res, sector, nb_sectors, id, prv)
    return done
