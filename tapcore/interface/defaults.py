"""What a driver gets that does not implement a hook: the behaviour of the simplest image."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tapcore.constants import TD_NO_PARENT
from tapcore.errors import NotSupportedError
from tapcore.interface.hookspecs import hookimpl
from tapcore.interface.models import DiskDriver, DiskId, TdCallback
from tapcore.interface.results import Bitmap, CheckResult, Extent, Inspection, Measurement, Snapshot


@hookimpl
def td_queue_write(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """A format that is only read."""
    return -errno.EROFS


@hookimpl
def td_submit(dd: DiskDriver) -> int:
    """Nothing is held back in a queue."""
    return 0


@hookimpl
def td_do_callbacks(dd: DiskDriver, sid: int) -> int:
    """Nothing finishes late."""
    return 0


@hookimpl
def td_close(dd: DiskDriver) -> None:
    """Nothing to release."""


@hookimpl
def td_get_parent_id(dd: DiskDriver, id: DiskId) -> int:
    """The image stands alone."""
    return TD_NO_PARENT


@hookimpl
def td_validate_parent(dd: DiskDriver, p: DiskDriver, flags: int) -> int:
    """A format without parents has none that fits."""
    return -errno.EINVAL


@hookimpl
def td_probe(name: str, head: bytes) -> bool:
    """Never recognised: only chosen by its handle."""
    return False


@hookimpl
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """Images of this format are not made here."""
    raise NotSupportedError("this format cannot be created")


@hookimpl
def td_queue_flush(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
    """A write is safe when it was answered."""
    return cb(dd, 0, 0, 0, id, prv)


@hookimpl
def td_queue_discard(
    dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """A discard is advice; nothing is done."""
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
    """No quick way: the core writes zeroes."""
    return -errno.EOPNOTSUPP


@hookimpl
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """All of it is content, stored in a way that only the driver knows."""
    return iter((Extent(sector, nb_sectors, "compressed"),))


@hookimpl
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """Nothing of the format's own."""
    return {}


@hookimpl
def td_other_files(dd: DiskDriver) -> Sequence[str]:
    """There are none."""
    return ()


@hookimpl
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """The driver cannot look at a file from a stranger."""
    raise NotSupportedError("this format has no inspection")


@hookimpl
def td_resize(dd: DiskDriver, size: int) -> None:
    """The format has one size for life."""
    raise NotSupportedError("this format cannot be resized")


@hookimpl
def td_check(dd: DiskDriver, repair: str) -> CheckResult:
    """The format has no metadata to be checked."""
    raise NotSupportedError("this format has no metadata to check")


@hookimpl
def td_queue_write_compressed(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """The format stores everything plain."""
    return -errno.EOPNOTSUPP


@hookimpl
def td_snapshots(dd: DiskDriver) -> list[Snapshot]:
    """There are none, and there never will be."""
    return []


@hookimpl
def td_snapshot_create(dd: DiskDriver, name: str) -> Snapshot:
    """The format keeps one state."""
    raise NotSupportedError("this format has no internal snapshots")


@hookimpl
def td_snapshot_apply(dd: DiskDriver, name: str) -> None:
    """The format keeps one state."""
    raise NotSupportedError("this format has no internal snapshots")


@hookimpl
def td_snapshot_delete(dd: DiskDriver, name: str) -> None:
    """The format keeps one state."""
    raise NotSupportedError("this format has no internal snapshots")


@hookimpl
def td_amend(dd: DiskDriver, options: Mapping[str, str]) -> None:
    """An image stays as it was made."""
    raise NotSupportedError("this format has nothing that can be changed in place")


@hookimpl
def td_set_parent(dd: DiskDriver, parent: DiskId | None) -> None:
    """Nothing is recorded, or nothing that could be changed."""
    raise NotSupportedError("the parent of this format's images cannot be changed")


@hookimpl
def td_before_commit(dd: DiskDriver, p: DiskDriver) -> None:
    """A parent is known by its name, which stays."""


@hookimpl
def td_make_empty(dd: DiskDriver) -> None:
    """Content stays where it is."""
    raise NotSupportedError("images of this format cannot be emptied")


@hookimpl
def td_bitmaps(dd: DiskDriver) -> list[Bitmap]:
    """There are none."""
    return []


@hookimpl
def td_bitmap_ranges(dd: DiskDriver, name: str) -> Iterable[tuple[int, int]]:
    """There are none."""
    raise NotSupportedError("this format has no bitmaps")


@hookimpl
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """Only the driver knows what its tables take."""
    raise NotSupportedError("the size of images of this format cannot be told beforehand")


@hookimpl
def td_stream(
    out: Callable[[Any], object],
    size: int,
    options: Mapping[str, str],
    pieces: Iterable[tuple[int, memoryview]],
) -> None:
    """The format's head says what only the end of the work knows."""
    raise NotSupportedError("this format cannot be written front to back")
