"""Reads: from the tables to the host file, without waiting for either."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from tap_qcow2.tables import mapping
from tapcore import BLK_NOT_ALLOCATED, SECTOR_SHIFT, ImageFormatError, TapError, content_damaged

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tapcore import DiskDriver, TdCallback


def read(
    image: Image,
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
        image: open.
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
    while sector < end:
        index = sector >> image.table_shift
        stop = min(end, (index + 1) << image.table_shift)
        part = buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]
        finished += _read_in_table(image, index, dd, sector, stop, part, cb, id, prv)
        sector = stop
    return finished


def _read_in_table(
    image: Image,
    index: int,
    dd: DiskDriver,
    sector: int,
    stop: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    tables = image.tables
    try:
        table = tables.cached(index)
        if table is None:
            if not tables.offset_of(index):
                return cb(dd, BLK_NOT_ALLOCATED, sector, stop - sector, id, prv)
            table = tables.now(index)
        if table is None:

            def go_on(res: int) -> int:
                if res:
                    return cb(dd, res, sector, stop - sector, id, prv)
                return _read_in_table(image, index, dd, sector, stop, buf, cb, id, prv)

            tables.load(index, go_on)
            return 0
    except (TapError, OSError) as exc:
        return _fail(image, exc, (cb, dd, sector, stop - sector, id, prv))
    finished = 0
    first = sector
    while sector < stop:
        try:
            run = mapping.run_at(image, table, sector, stop)
        except ImageFormatError as exc:  # of this cluster; those behind it are not concerned
            until = min((sector | image.sector_mask) + 1, stop)
            finished += _fail(image, exc, (cb, dd, sector, until - sector, id, prv))
            sector = until
            continue
        at = (sector - first) << SECTOR_SHIFT
        part = buf[at : at + (run.nb_sectors << SECTOR_SHIFT)]
        finished += _read_run(image, run, part, (cb, dd, sector, run.nb_sectors, id, prv))
        sector += run.nb_sectors
    return finished


def _read_run(image: Image, run: mapping.Run, buf: memoryview, answer: tuple[Any, ...]) -> int:
    cb, dd, sector, nb_sectors, id, prv = answer
    done: int
    try:
        if run.kind == mapping.DATA:
            return image.read_data(run.where, buf, answer)
        if run.kind == mapping.COMPRESSED:
            return image.inflater.read(run, buf, answer)
    except (TapError, OSError) as exc:
        return _fail(image, exc, answer)
    if run.kind == mapping.ZERO:
        buf[:] = bytes(len(buf))
        done = cb(dd, 0, sector, nb_sectors, id, prv)
        return done
    done = cb(dd, BLK_NOT_ALLOCATED, sector, nb_sectors, id, prv)
    return done


def _fail(image: Image, exc: TapError | OSError, answer: tuple[Any, ...]) -> int:
    cb, dd, sector, nb_sectors, id, prv = answer
    res = -(exc.errno or errno.EIO)
    if isinstance(exc, ImageFormatError):
        res = content_damaged(dd, sector, nb_sectors, exc.message)
        image.mark_corrupt(exc.message, told=True)
    done: int = cb(dd, res, sector, nb_sectors, id, prv)
    return done
