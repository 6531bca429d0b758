"""The hooks of a view: what it has of its own lies in its store, all else is a hole.

It is a driver as any other, but for one thing: it makes no images, so nobody can name it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from tapcore.constants import BLK_NOT_ALLOCATED, HOOKS_VERSION, SECTOR_SHIFT
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.extent import Extent
from tapcore.interface.hooks import implements
from tapcore.interface.models import DiskDriver, Hooks, TapDisk, TdCallback
from tapcore.interface.places import ASK, NOWHERE, PlacedFile, Places
from tapcore.interface.registry import Registry
from tapcore.views.store import Store

disk_info = DiskInfo(
    handle="view", name="throw-away view of a disk", api=HOOKS_VERSION, file_backed=False
)


@cache
def operations() -> TapDisk:
    """Of the driver, which is in no table that users see."""
    registry = Registry(discover=False)
    row = registry.register(sys.modules[__name__])
    assert not row.error, row.error
    return registry.operations(row.handle)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Store], name: str, flags: int) -> None:
    """A store that is there already."""
    dd.private = store = dd.options.private["store"]
    dd.size = store.file.size >> SECTOR_SHIFT
    dd.io_fd[0] = store.file.io_fd


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[Store],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Its own content; a hole elsewhere."""
    finished = 0
    for start, end, own in dd.private.written.runs(sector, sector + nb_sectors):
        count = end - start
        if not own:
            finished += cb(dd, BLK_NOT_ALLOCATED, start, count, id, prv)
            continue
        first = (start - sector) << SECTOR_SHIFT
        part = buf[first : first + (count << SECTOR_SHIFT)]
        finished += _read(dd, start, count, part, cb, id, prv)
    return finished


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver[Store],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Into its store, as far as there is room."""
    store, offset, length = dd.private, sector << SECTOR_SHIFT, len(buf)
    if not store.may_write(offset, length):
        return cb(dd, store.full(), sector, nb_sectors, id, prv)
    res = store.file.write_now(offset, buf)
    if res is not None:
        return _written(dd, res, sector, nb_sectors, cb, id, prv)

    def then(res: int) -> int:
        store.coming(-length)
        return _written(dd, res, sector, nb_sectors, cb, id, prv)

    store.coming(length)
    store.file.queue_write(offset, buf, then)
    return 0


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver[Store], cb: TdCallback, id: int, prv: Any) -> int:
    """It is gone at the end in any case."""
    return cb(dd, 0, 0, 0, id, prv)


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver[Store],
    sector: int,
    nb_sectors: int,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Zeroes: what lies below must not show again."""
    return _zero(dd, sector, nb_sectors, cb, id, prv)


@implements(Hooks.td_queue_write_zeroes)
def td_queue_write_zeroes(
    dd: DiskDriver[Store],
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Zeroes take no space, whether or not it may be given back."""
    return _zero(dd, sector, nb_sectors, cb, id, prv)


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver[Store]) -> int:
    """Threads have it already."""
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver[Store], sid: int) -> int:
    """Answer what they have done."""
    return dd.private.file.reap()


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver[Store], sector: int, nb_sectors: int) -> Iterator[Extent]:
    """What it has of its own."""
    return dd.private.extents(sector, nb_sectors)


@implements(Hooks.td_places)
def td_places(dd: DiskDriver[Store]) -> Places:
    """Each sector lies where it lies on the disk."""
    return _StorePlaces(dd.private)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver[Store], size: int) -> None:
    """Of this view alone."""
    dd.private.resize(size)
    dd.size = size >> SECTOR_SHIFT


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Store]) -> dict[str, Any]:
    """How much it takes."""
    return {"space_used": dd.private.used()}


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Store]) -> None:
    """All is gone."""
    dd.private.close()


def _read(
    dd: DiskDriver[Store],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    file, offset = dd.private.file, sector << SECTOR_SHIFT
    res = file.read_now(offset, buf)
    if res is not None:
        return cb(dd, res, sector, nb_sectors, id, prv)
    file.queue_read(offset, buf, lambda res: cb(dd, res, sector, nb_sectors, id, prv))
    return 0


def _written(
    dd: DiskDriver[Store],
    res: int,
    sector: int,
    nb_sectors: int,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    if not res:
        dd.private.note(sector, nb_sectors)
    return cb(dd, res, sector, nb_sectors, id, prv)


def _zero(
    dd: DiskDriver[Store], sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    store = dd.private
    if not store.may_zero():
        return cb(dd, store.full(), sector, nb_sectors, id, prv)

    def then(res: int) -> int:
        return _written(dd, res, sector, nb_sectors, cb, id, prv)

    store.file.queue_zero(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT, True, then)
    return 0


class _StorePlaces:
    """What is its own lies in the store, and may be overwritten there as long as there is room."""

    __slots__ = ("_store", "_written", "busy", "data")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written = store.written
        self.data: PlacedFile = store.file
        self.busy = False

    def place(self, sector: int, nb_sectors: int, /) -> int:
        own = self._written.has(sector, sector + nb_sectors)
        if own:
            return sector << SECTOR_SHIFT
        return ASK if own is None else NOWHERE

    def place_to_write(self, sector: int, nb_sectors: int, /) -> int:
        if not self._written.has(sector, sector + nb_sectors):
            return ASK
        offset = sector << SECTOR_SHIFT
        return offset if self._store.may_write(offset, nb_sectors << SECTOR_SHIFT) else ASK
