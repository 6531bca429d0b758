"""Reads: from the tables to the file, without waiting for either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tap_qcow.mapping import HOLE, MISSING, PLAIN, Run, each_run
from tapcore import BLK_NOT_ALLOCATED, SECTOR_SHIFT, content_damaged, content_missing

if TYPE_CHECKING:
    from tap_qcow.image import Image
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
    """Read a range; arguments and result are the hook's."""

    def visit(run: Run) -> int:
        if run.kind == HOLE:
            return cb(dd, BLK_NOT_ALLOCATED, run.sector, run.nb_sectors, id, prv)
        start = (run.sector - sector) << SECTOR_SHIFT
        part = buf[start : start + (run.nb_sectors << SECTOR_SHIFT)]
        if run.kind == MISSING:
            text = f"its cluster, at offset {run.where:#x}, lies past the end of the file"
            res = content_missing(dd, run.sector, run.nb_sectors, part, text)
            return cb(dd, res, run.sector, run.nb_sectors, id, prv)
        answer = (cb, dd, run.sector, run.nb_sectors, id, prv)
        return (_read_plain if run.kind == PLAIN else _read_deflated)(image, run, part, answer)

    def fail(res: int, sector: int, nb_sectors: int) -> int:
        return cb(dd, res, sector, nb_sectors, id, prv)

    return each_run(image, sector, nb_sectors, visit, fail)


def _read_plain(image: Image, run: Run, part: memoryview, answer: tuple[Any, ...]) -> int:
    cb, dd, sector, nb_sectors, id, prv = answer
    if image.cipher is not None:
        answer = (_decrypt, dd, sector, nb_sectors, id, (image, part, cb, prv))
    res = image.file.read_now(run.where, part)
    if res is None:
        image.file.queue_read(run.where, part, answer)
        return 0
    done: int = answer[0](dd, res, sector, nb_sectors, id, answer[5])
    return done


def _decrypt(
    dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, what: tuple[Any, ...]
) -> int:
    image, part, cb, prv = what
    if not res:
        part[:] = image.cipher.decrypt(sector, part)
    done: int = cb(dd, res, sector, nb_sectors, id, prv)
    return done


def _read_deflated(image: Image, run: Run, part: memoryview, answer: tuple[Any, ...]) -> int:
    cb, dd, sector, nb_sectors, id, prv = answer
    skip = (sector & image.geometry.sector_mask) << SECTOR_SHIFT

    def take(res: int, content: bytes) -> int:
        if not res:
            part[:] = memoryview(content)[skip : skip + len(part)]
        elif reason := image.inflater.reason(run.where):
            content_damaged(dd, sector, nb_sectors, reason)
        done: int = cb(dd, res, sector, nb_sectors, id, prv)
        return done

    return image.inflater.fetch(run.where, take)
