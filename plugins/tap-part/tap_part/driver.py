"""`part:N:IMAGE`: partition N of any image, as a disk of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs

from tap_part.partition import Partition
from tap_part.table import find_partition
from tapcore import (
    SECTOR_SHIFT,
    Below,
    DiskDriver,
    DiskInfo,
    Extent,
    Hooks,
    TdCallback,
    UsageError,
    answer_over,
    implements,
)

disk_info = DiskInfo(
    handle="part",
    name="partition of an image (MBR, GPT)",
    api=1,
    file_backed=False,
    words_before_image=1,
)

_NAME: Final = re.compile(r"(\d{1,4})(?:/(512|4096))?:(.+)", re.ASCII | re.DOTALL)


@attrs.define(eq=False)
class Opened:
    """An open partition.

    Attributes:
        below: the image with the table.
        partition: which one.
    """

    below: Below
    partition: Partition

    def place(self, sector: int) -> int:
        """Where a sector lies in the image below, in bytes."""
        return self.partition.start + (sector << SECTOR_SHIFT)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Opened], name: str, flags: int) -> None:
    """`N:IMAGE`, or `N/4096:IMAGE` where a sector of the table has so many bytes."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"'part:{name}' is not part:N:IMAGE, or part:N/4096:IMAGE")
    number, unit, image = match.groups()
    below = dd.open_below(image)
    try:
        partition = find_partition(below, int(number), int(unit) if unit else None, below.name)
    except BaseException:
        below.close()
        raise
    dd.private = Opened(below, partition)
    dd.io_fd[0] = below.fileno()
    dd.size = partition.length >> SECTOR_SHIFT
    if not (partition.start | partition.length) & (below.sector_size - 1):
        dd.sector_size = below.sector_size


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[Opened],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Of the image below."""
    then = answer_over(cb, dd, sector, nb_sectors, id, prv)
    return dd.private.below.queue_read(dd.private.place(sector), buf, then)


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver[Opened],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """To the image below."""
    then = answer_over(cb, dd, sector, nb_sectors, id, prv)
    return dd.private.below.queue_write(dd.private.place(sector), buf, then)


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver[Opened], cb: TdCallback, id: int, prv: Any) -> int:
    """Of all of the image below."""
    return dd.private.below.queue_flush(answer_over(cb, dd, 0, 0, id, prv))


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver[Opened], sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """To the image below."""
    then = answer_over(cb, dd, sector, nb_sectors, id, prv)
    return dd.private.below.queue_discard(
        dd.private.place(sector), nb_sectors << SECTOR_SHIFT, then
    )


@implements(Hooks.td_queue_write_zeroes)
def td_queue_write_zeroes(
    dd: DiskDriver[Opened],
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """To the image below."""
    then = answer_over(cb, dd, sector, nb_sectors, id, prv)
    return dd.private.below.queue_zeroes(
        dd.private.place(sector), nb_sectors << SECTOR_SHIFT, may_unmap, then
    )


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver[Opened]) -> int:
    """To the image below."""
    dd.private.below.submit()
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver[Opened], sid: int) -> int:
    """From the image below."""
    dd.private.below.reap()
    return 0


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver[Opened], sector: int, nb_sectors: int) -> Iterator[Extent]:
    """Of the image below."""
    start = dd.private.partition.start >> SECTOR_SHIFT
    for extent in dd.private.below.extents(start + sector, nb_sectors):
        yield attrs.evolve(extent, sector=extent.sector - start)


@implements(Hooks.td_other_files)
def td_other_files(dd: DiskDriver[Opened]) -> Sequence[str]:
    """Those of the image below."""
    return dd.private.below.files()


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Opened]) -> dict[str, Any]:
    """What the table says."""
    partition = dd.private.partition
    return {
        "below": dd.private.below.name,
        "table": partition.table,
        "partition": partition.number,
        "start": partition.start,
        "type": partition.kind,
        **({"name": partition.name} if partition.name else {}),
    }


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Opened]) -> None:
    """And the image below."""
    dd.private.below.close()
