"""Raw images, plain pread and pwrite: every call blocks until it is done, and answers at once.

This is the smallest example of a driver; what it leaves out, the core does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tapcore import (
    HOOKS_VERSION,
    SECTOR_SHIFT,
    DiskDriver,
    DiskId,
    DiskInfo,
    Extent,
    FormatOption,
    ImageFile,
    Inspection,
    TdCallback,
    UsageError,
    create_host_file,
    describe_host_file,
    hookimpl,
    open_image_file,
)

disk_info = DiskInfo(
    handle="sync",
    name="raw image (sync)",
    api=HOOKS_VERSION,
    create_options=(
        FormatOption("preallocation", "how space is reserved", ("off", "falloc", "full"), "off"),
    ),
)


@hookimpl
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """The whole file is the disk; a last sector that is not full reads as if it were."""
    if dd.options.cache != "writeback":
        raise UsageError("sync: always goes through the page cache; use aio: with --cache none")
    file = open_image_file(name, flags, dd.options)
    dd.private = file
    dd.size = file.sectors
    dd.sector_size = file.sector_size


@hookimpl
def td_queue_read(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """Read, and answer."""
    file: ImageFile = dd.private
    res = file.read_blocking(sector << SECTOR_SHIFT, buf)
    return cb(dd, res, sector, nb_sectors, id, prv)


@hookimpl
def td_queue_write(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """Write, and answer."""
    file: ImageFile = dd.private
    res = file.write_blocking(sector << SECTOR_SHIFT, buf)
    return cb(dd, res, sector, nb_sectors, id, prv)


@hookimpl
def td_queue_flush(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
    """fdatasync."""
    file: ImageFile = dd.private
    return cb(dd, file.flush_blocking(), 0, 0, id, prv)


@hookimpl
def td_queue_discard(
    dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Punch a hole."""
    file: ImageFile = dd.private
    res = file.discard_blocking(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT)
    return cb(dd, res, sector, nb_sectors, id, prv)


@hookimpl
def td_queue_write_zeroes(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Zero by fallocate."""
    file: ImageFile = dd.private
    res = file.zero_blocking(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT, may_unmap)
    return cb(dd, res, sector, nb_sectors, id, prv)


@hookimpl
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterable[Extent]:
    """Data and holes as the file system knows them."""
    file: ImageFile = dd.private
    return file.extents(sector, nb_sectors)


@hookimpl
def td_create(name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]) -> None:
    """A plain file, sparse unless `preallocation` says otherwise."""
    if parent is not None or size is None:
        raise UsageError("a raw image stands alone and needs a size", image=name)
    create_host_file(name, size, options.get("preallocation", "off"))


@hookimpl
def td_resize(dd: DiskDriver, size: int) -> None:
    """Change the file's length."""
    file: ImageFile = dd.private
    file.resize(size)
    dd.size = file.sectors


@hookimpl
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """The kind of file and its length."""
    return describe_host_file(dd.private.fd)


@hookimpl
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """Any file is a raw image; nothing in it is looked at."""
    return Inspection(virtual_size=-(-size // 512) * 512)


@hookimpl
def td_close(dd: DiskDriver) -> None:
    """Flush and close the file."""
    dd.private.close()
