"""Disks in memory: `ram:SIZE` is empty, `ram:PATH` is loaded from a file; all is gone at close."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tap_ram.memory import CHUNK_SHIFT, Memory
from tapcore import (
    BLK_NOT_ALLOCATED,
    HOOKS_VERSION,
    SECTOR_SHIFT,
    DiskDriver,
    DiskInfo,
    Extent,
    TdCallback,
    UsageError,
    hookimpl,
)

disk_info = DiskInfo(
    handle="ram",
    name="ramdisk image (ram)",
    api=HOOKS_VERSION,
    single_handler=True,
    file_backed=False,
)

_CHUNK_SECTOR_SHIFT = CHUNK_SHIFT - SECTOR_SHIFT


@hookimpl
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """An empty disk of a size, or the content of a file (of a block device, ...)."""
    if dd.options.cache != "writeback":
        raise UsageError("ram: has no cache mode")
    dd.private = memory = Memory.named(name, locking=dd.options.locking)
    dd.size = memory.size >> SECTOR_SHIFT


@hookimpl
def td_queue_read(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """Copy, where something was ever written; a hole elsewhere."""
    memory: Memory = dd.private
    first = sector >> _CHUNK_SECTOR_SHIFT
    if first == (sector + nb_sectors - 1) >> _CHUNK_SECTOR_SHIFT:
        if first not in memory.chunks:
            return cb(dd, BLK_NOT_ALLOCATED, sector, nb_sectors, id, prv)
        start = sector << SECTOR_SHIFT
        buf[:] = memory.view[start : start + len(buf)]
        return cb(dd, 0, sector, nb_sectors, id, prv)
    memory.read(sector << SECTOR_SHIFT, buf)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@hookimpl
def td_queue_write(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """Copy."""
    memory: Memory = dd.private
    memory.write(sector << SECTOR_SHIFT, buf)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@hookimpl
def td_queue_discard(
    dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Give the memory back."""
    dd.private.punch(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT)
    return cb(dd, 0, sector, nb_sectors, id, prv)


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
    """Memory that is given back reads as zeroes; that keeping it reserved means nothing here."""
    dd.private.punch(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@hookimpl
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """What was written and what never was, as the kernel knows it."""
    memory: Memory = dd.private
    start, length = sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT
    for lo, hi, data in memory.runs(start, start + length):
        at, count = lo >> SECTOR_SHIFT, (hi - lo) >> SECTOR_SHIFT
        if data:
            yield Extent(at, count, "data", memory.fd, "", lo)
        else:
            yield Extent(at, count, "zero")


@hookimpl
def td_resize(dd: DiskDriver, size: int) -> None:
    """Grow or shrink, as long as it lives."""
    dd.private.resize(size)
    dd.size = size >> SECTOR_SHIFT


@hookimpl
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """How much memory is really used."""
    memory: Memory = dd.private
    return {"loaded_from": memory.source or None, "memory_used": memory.used()}


@hookimpl
def td_close(dd: DiskDriver) -> None:
    """Free the memory; the file that it was loaded from is as it was."""
    dd.private.close()
