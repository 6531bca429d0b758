"""The hooks of a driver whose image has a map: a driver takes them over by importing them.

They expect `dd.private.clusters` to be a `Clusters`, and those that change something a
`WritableClusters`. Requests that lie in one piece are answered here, all others elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tapcore.constants import BLK_NOT_ALLOCATED
from tapcore.interface.answer import Answer, answer_over
from tapcore.interface.hooks import implements
from tapcore.interface.models import DiskDriver, Hooks, TdCallback
from tapcore.interface.places import ASK, NOWHERE, Places

if TYPE_CHECKING:
    from tapcore.clusters.machine import Mapped, WritableMapped
    from tapcore.interface.extent import Extent


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[Mapped],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """In one piece that the page cache holds, or a hole: at once."""
    clusters = dd.private.clusters
    where = clusters.place(sector, nb_sectors)
    if where >= 0:
        res = clusters.data.read_now(where, buf)
        if res is not None:
            return cb(dd, res, sector, nb_sectors, id, prv)
        if where + len(buf) <= clusters.data.size:
            then = answer_over(cb, dd, sector, nb_sectors, id, prv)
            return clusters.queue_read(where, buf, then)
    elif where == NOWHERE:
        return cb(dd, BLK_NOT_ALLOCATED, sector, nb_sectors, id, prv)
    return clusters.read(sector, nb_sectors, buf, Answer(cb, dd, id, prv))


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver[WritableMapped],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """In place, and in one piece: at once."""
    clusters = dd.private.clusters
    where = ASK if clusters.busy else clusters.place_to_write(sector, nb_sectors)
    if where >= 0:
        res = clusters.data.write_now(where, buf)
        if res is not None:
            return cb(dd, res, sector, nb_sectors, id, prv)
        return clusters.queue_write(where, buf, answer_over(cb, dd, sector, nb_sectors, id, prv))
    return clusters.write(sector, nb_sectors, buf, Answer(cb, dd, id, prv))


@implements(Hooks.td_queue_write_compressed)
def td_queue_write_compressed(
    dd: DiskDriver[WritableMapped],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Of a `PackingMap`."""
    return dd.private.clusters.write_packed(sector, buf, Answer(cb, dd, id, prv))


@implements(Hooks.td_queue_write_zeroes)
def td_queue_write_zeroes(
    dd: DiskDriver[WritableMapped],
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """As the map can say it, or the host file do it."""
    answer = Answer(cb, dd, id, prv)
    return dd.private.clusters.write_zeroes(sector, nb_sectors, may_unmap, answer)


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver[WritableMapped], sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """The same."""
    return dd.private.clusters.discard(sector, nb_sectors, Answer(cb, dd, id, prv))


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver[WritableMapped], cb: TdCallback, id: int, prv: Any) -> int:
    """Content, then what names it, in a thread."""
    return dd.private.clusters.flush(answer_over(cb, dd, 0, 0, id, prv))


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver[Mapped]) -> int:
    """One call to the kernel for the batch."""
    dd.private.clusters.submit()
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver[Mapped], sid: int) -> int:
    """Answer what has finished, and start what had to wait for it."""
    return dd.private.clusters.reap(sid)


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver[Mapped], sector: int, nb_sectors: int) -> Iterable[Extent]:
    """Straight from the map."""
    return dd.private.clusters.extents(sector, nb_sectors)


@implements(Hooks.td_places)
def td_places(dd: DiskDriver[Mapped]) -> Places | None:
    """The map's short ways."""
    return dd.private.clusters


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Mapped]) -> None:
    """As a flush, and release."""
    dd.private.clusters.close()
