"""Raw images, plain pread and pwrite: every call blocks until it is done, and answers at once.

This is the smallest example of a driver; what it leaves out, the core does.
"""

from __future__ import annotations

from typing import Any

from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    DiskInfo,
    Hooks,
    ImageFile,
    TdCallback,
    UsageError,
    implements,
    open_image_file,
)
from tapcore.rawfile import (
    CREATE_OPTIONS,
    td_close,
    td_create,
    td_extents,
    td_info,
    td_inspect,
    td_measure,
    td_places,
    td_resize,
    td_stream,
)

disk_info = DiskInfo(
    handle="sync",
    name="raw image (sync)",
    api=1,
    makes_unnamed=True,
    create_options=CREATE_OPTIONS,
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[ImageFile], name: str, flags: int) -> None:
    """The whole file is the disk; a last sector that is not full reads as if it were."""
    if dd.options.cache != "writeback":
        raise UsageError("sync: always goes through the page cache; use aio: with --cache none")
    file = open_image_file(name, flags, dd.options)
    dd.private = file
    dd.size = file.sectors
    dd.sector_size = file.sector_size


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[ImageFile],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Read, and answer."""
    file = dd.private
    res = file.read_blocking(sector << SECTOR_SHIFT, buf)
    return cb(dd, res, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver[ImageFile],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Write, and answer."""
    file = dd.private
    res = file.write_blocking(sector << SECTOR_SHIFT, buf)
    return cb(dd, res, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver[ImageFile], cb: TdCallback, id: int, prv: Any) -> int:
    """fdatasync."""
    file = dd.private
    return cb(dd, file.flush_blocking(), 0, 0, id, prv)


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver[ImageFile], sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Punch a hole."""
    file = dd.private
    res = file.discard_blocking(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT)
    return cb(dd, res, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_write_zeroes)
def td_queue_write_zeroes(
    dd: DiskDriver[ImageFile],
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Zero by fallocate."""
    file = dd.private
    res = file.zero_blocking(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT, may_unmap)
    return cb(dd, res, sector, nb_sectors, id, prv)


# what aio: and sync: have in common, since their disks are simply files
__all__ = [
    "disk_info",
    "td_close",
    "td_create",
    "td_extents",
    "td_info",
    "td_inspect",
    "td_measure",
    "td_places",
    "td_resize",
    "td_stream",
]
