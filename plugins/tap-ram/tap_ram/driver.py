"""Disks in memory: `ram:SIZE` is empty, `ram:PATH` is loaded from a file; all is gone at close."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tap_ram.memory import CHUNK_SHIFT, Memory
from tapcore import (
    BLK_NOT_ALLOCATED,
    SECTOR_SHIFT,
    DiskDriver,
    DiskInfo,
    Extent,
    Hooks,
    TdCallback,
    UsageError,
    implements,
)

disk_info = DiskInfo(
    handle="ram",
    name="ramdisk image (ram)",
    api=1,
    single_handler=True,
    file_backed=False,
)

_CHUNK_SECTOR_SHIFT = CHUNK_SHIFT - SECTOR_SHIFT


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Memory], name: str, flags: int) -> None:
    """An empty disk of a size, or the content of a file (of a block device, ...)."""
    if dd.options.cache != "writeback":
        raise UsageError("ram: has no cache mode")
    dd.private = memory = Memory.named(name, locking=dd.options.locking)
    dd.size = memory.size >> SECTOR_SHIFT


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[Memory],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Copy, where something was ever written; a hole elsewhere."""
    memory = dd.private
    first = sector >> _CHUNK_SECTOR_SHIFT
    if first == (sector + nb_sectors - 1) >> _CHUNK_SECTOR_SHIFT:
        if first not in memory.chunks:
            return cb(dd, BLK_NOT_ALLOCATED, sector, nb_sectors, id, prv)
        start = sector << SECTOR_SHIFT
        buf[:] = memory.view[start : start + len(buf)]
        return cb(dd, 0, sector, nb_sectors, id, prv)
    memory.read(sector << SECTOR_SHIFT, buf)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver[Memory],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Copy."""
    memory = dd.private
    memory.write(sector << SECTOR_SHIFT, buf)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver[Memory], sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Give the memory back."""
    dd.private.punch(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_write_zeroes)
def td_queue_write_zeroes(
    dd: DiskDriver[Memory],
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


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver[Memory], sector: int, nb_sectors: int) -> Iterator[Extent]:
    """What was written and what never was, as the kernel knows it."""
    memory = dd.private
    start, length = sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT
    for lo, hi, data in memory.runs(start, start + length):
        at, count = lo >> SECTOR_SHIFT, (hi - lo) >> SECTOR_SHIFT
        if data:
            yield Extent(at, count, "data", memory.fd, "", lo)
        else:
            yield Extent(at, count, "zero")


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver[Memory], size: int) -> None:
    """Grow or shrink, as long as it lives."""
    dd.private.resize(size)
    dd.size = size >> SECTOR_SHIFT


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Memory]) -> dict[str, Any]:
    """How much memory is really used."""
    memory = dd.private
    return {"loaded_from": memory.source or None, "memory_used": memory.used()}


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Memory]) -> None:
    """Free the memory; the file that it was loaded from is as it was."""
    dd.private.close()
