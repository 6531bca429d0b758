"""What stands for images that are closed: it has their size, and nothing can be read or written.

A driver as any other, but for one thing: it makes no images, so nobody can name it.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from tapcore.constants import HOOKS_VERSION
from tapcore.errors import IOFailedError
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.extent import Extent
from tapcore.interface.hooks import implements
from tapcore.interface.models import DiskDriver, Hooks, TapDisk, TdCallback, TdState
from tapcore.interface.registry import Registry

disk_info = DiskInfo(
    handle="absent", name="images that are closed", api=HOOKS_VERSION, file_backed=False
)


@cache
def _operations() -> TapDisk:
    registry = Registry(discover=False)
    row = registry.register(sys.modules[__name__])
    assert not row.error, row.error
    return registry.operations(row.handle)


def absent(leaf: DiskDriver, disk: TdState) -> DiskDriver:
    """What stands for a chain that is about to be closed.

    Args:
        leaf: of the chain: its size, and how it was opened, are kept.
        disk: to which the place belongs.
    """
    return DiskDriver(
        name=leaf.name,
        drv=_operations(),
        flags=leaf.flags,
        td_state=disk,
        options=leaf.options,
        size=leaf.size,
        sector_size=leaf.sector_size,
        cluster_size=leaf.cluster_size,
        info=leaf.info,
    )


def is_absent(dd: DiskDriver) -> bool:
    """Whether it only stands for images."""
    return dd.drv is _operations()


@implements(Hooks.td_open)
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """Only `absent` makes one."""
    raise OSError(errno.ENODEV, "nothing is open")


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Fails."""
    return cb(dd, -errno.EIO, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Fails."""
    return cb(dd, -errno.EIO, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Fails."""
    return cb(dd, -errno.EIO, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_write_zeroes)
def td_queue_write_zeroes(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Fails."""
    return cb(dd, -errno.EIO, sector, nb_sectors, id, prv)


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
    """All that was written is on disk: it was flushed before the images were closed."""
    return cb(dd, 0, 0, 0, id, prv)


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver) -> int:
    """Everything is answered at once."""
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver, sid: int) -> int:
    """There is nothing to wait for."""
    return 0


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """Nobody knows."""
    raise IOFailedError("its images are closed", image=dd.name, errno=errno.EIO)


@implements(Hooks.td_close)
def td_close(dd: DiskDriver) -> None:
    """The images are closed already."""
