"""Raw images, asynchronous: what the page cache has is answered at once, the rest later.

With `--cache none` the core's image-file layer uses this package's Linux AIO engine instead.
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
    answer_over,
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
    handle="aio",
    name="raw image (aio)",
    api=1,
    makes_unnamed=True,
    create_options=CREATE_OPTIONS,
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[ImageFile], name: str, flags: int) -> None:
    """The whole file is the disk; a last sector that is not full reads as if it were."""
    file = open_image_file(name, flags, dd.options)
    dd.private = file
    dd.io_fd[0] = file.io_fd
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
    """At once from the page cache, else queued."""
    file = dd.private
    offset = sector << SECTOR_SHIFT
    res = file.read_now(offset, buf)
    if res is None:
        return file.queue_read(offset, buf, answer_over(cb, dd, sector, nb_sectors, id, prv))
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
    """At once into the page cache, else queued."""
    file = dd.private
    offset = sector << SECTOR_SHIFT
    res = file.write_now(offset, buf)
    if res is None:
        return file.queue_write(offset, buf, answer_over(cb, dd, sector, nb_sectors, id, prv))
    return cb(dd, res, sector, nb_sectors, id, prv)


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver[ImageFile]) -> int:
    """One call to the kernel for the batch."""
    dd.private.submit()
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver[ImageFile], sid: int) -> int:
    """Answer what has finished."""
    return dd.private.reap()


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver[ImageFile], cb: TdCallback, id: int, prv: Any) -> int:
    """fdatasync, in a thread."""
    dd.private.queue_flush(answer_over(cb, dd, 0, 0, id, prv))
    return 0


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver[ImageFile], sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Punch a hole, in a thread."""
    file = dd.private
    then = answer_over(cb, dd, sector, nb_sectors, id, prv)
    file.queue_discard(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT, then)
    return 0


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
    """Zero by fallocate, in a thread."""
    file = dd.private
    then = answer_over(cb, dd, sector, nb_sectors, id, prv)
    file.queue_zero(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT, may_unmap, then)
    return 0


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
