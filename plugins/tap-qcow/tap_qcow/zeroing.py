"""Zeroes and discards: the format has no mark for them, but the file can have holes."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from tap_qcow.mapping import HOLE, PLAIN, Run, each_run
from tapcore import SECTOR_SHIFT

if TYPE_CHECKING:
    from tap_qcow.image import Image
    from tapcore import DiskDriver, TdCallback


def write_zeroes(
    image: Image,
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Zero what is stored plain, in its place; arguments and result are the hook's.

    What cannot be done (it would show a parent, is compressed or encrypted) is answered so.
    """
    holes = 0 if may_unmap and not image.header.backing_file else -errno.EOPNOTSUPP

    def visit(run: Run) -> int:
        if run.kind == PLAIN and image.cipher is None:
            answer = (cb, dd, run.sector, run.nb_sectors, id, prv)
            image.file.queue_zero(run.where, run.nb_sectors << SECTOR_SHIFT, may_unmap, answer)
            return 0
        res = holes if run.kind == HOLE else -errno.EOPNOTSUPP
        return cb(dd, res, run.sector, run.nb_sectors, id, prv)

    return each_run(
        image, sector, nb_sectors, visit, lambda res, at, count: cb(dd, res, at, count, id, prv)
    )


def discard(
    image: Image, dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Give back what is stored plain; the clusters stay, and read as zeroes."""

    def visit(run: Run) -> int:
        answer = (cb, dd, run.sector, run.nb_sectors, id, prv)
        if run.kind == PLAIN and image.cipher is None:
            image.file.queue_discard(run.where, run.nb_sectors << SECTOR_SHIFT, answer)
            return 0
        return cb(dd, 0, run.sector, run.nb_sectors, id, prv)

    return each_run(
        image, sector, nb_sectors, visit, lambda res, at, count: cb(dd, res, at, count, id, prv)
    )
