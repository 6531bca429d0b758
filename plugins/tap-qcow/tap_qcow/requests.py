"""Requests: those inside one plain cluster at once, all others by way of the tables."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from tap_qcow import reading
from tap_qcow.mapping import plain_place
from tap_qcow.writing import Write, no_room
from tap_qcow.writing import write as write_by_tables

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
    """From the page cache at once, else later; arguments and result are the hook's."""
    where = plain_place(image, sector, nb_sectors)
    if not where or image.cipher is not None:
        return reading.read(image, dd, sector, nb_sectors, buf, cb, id, prv)
    res = image.file.read_now(where, buf)
    if res is None:
        return image.file.queue_read(where, buf, (cb, dd, sector, nb_sectors, id, prv))
    return cb(dd, res, sector, nb_sectors, id, prv)


def write(
    image: Image,
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """In place, or at the end of the file; arguments and result are the hook's."""
    where = plain_place(image, sector, nb_sectors)
    if where and image.cipher is None:
        res = image.file.write_now(where, buf)
        if res is None:
            return image.file.queue_write(where, buf, (cb, dd, sector, nb_sectors, id, prv))
        return cb(dd, res, sector, nb_sectors, id, prv)
    if res := no_room(image):
        return res
    return write_by_tables(Write(image, dd, sector, buf, cb, id, prv), sector, nb_sectors)


def first_write(
    image: Image,
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """As `write`, with what has to be done once before."""
    image.begin_writing()
    return write(image, dd, sector, nb_sectors, buf, cb, id, prv)


def write_compressed(
    image: Image,
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Not in an encrypted image: nobody would look for plain content there."""
    from tap_qcow import deflating

    if image.header.encrypted:
        return -errno.EOPNOTSUPP
    image.begin_writing()
    if res := no_room(image):
        return res
    request = Write(image, dd, sector, buf, cb, id, prv)
    return deflating.write_compressed(request, sector, nb_sectors)
