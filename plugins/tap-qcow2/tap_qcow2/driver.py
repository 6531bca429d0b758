"""The hooks of the format: the fast paths, and the way to everything else.

The rest is loaded when it is first needed, since every `tapdisk` command loads every driver.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tapcore import (
    BLK_NOT_ALLOCATED,
    HOOKS_VERSION,
    SECTOR_SHIFT,
    TD_NO_PARENT,
    Answer,
    DiskDriver,
    DiskId,
    DiskInfo,
    FormatOption,
    Hooks,
    TdCallback,
    implements,
)

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tapcore import Bitmap, CheckResult, Extent, Inspection, Measurement, Snapshot

_AMENDABLE = (
    FormatOption("compat", "version of the format: 0.10 is 2, 1.1 is 3", ("0.10", "1.1"), "1.1"),
    FormatOption("lazy_refcounts", "refcounts are written late", ("on", "off"), "off"),
    FormatOption("refcount_bits", "width of a refcount", default="16"),
)

disk_info = DiskInfo(
    handle="qcow2",
    name="qcow2 disk (qcow2)",
    api=HOOKS_VERSION,
    makes_unnamed=True,
    suffixes=(".qcow2",),
    create_options=(
        FormatOption("cluster_size", "unit of allocation, 512 to 2M", default="64K"),
        *_AMENDABLE,
        FormatOption(
            "preallocation",
            "what is allocated from the start",
            ("off", "metadata", "falloc", "full"),
            "off",
        ),
        FormatOption("compression_type", "of compressed clusters", ("zlib", "zstd"), "zlib"),
        FormatOption("extended_l2", "clusters have 32 subclusters", ("on", "off"), "off"),
        FormatOption("data_file", "keep the data in this file"),
        FormatOption("data_file_raw", "and let it be a raw image", ("on", "off"), "off"),
        FormatOption("encrypt.format", "encrypt the data", ("luks",)),
        FormatOption("encrypt.key-file", "file with the passphrase"),
    ),
    amend_options=_AMENDABLE,
)

# ---- open and close --------------------------------------------------------------------------


@implements(Hooks.td_open)
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """See `open`."""
    from tap_qcow2.open import open_image

    image = open_image(dd, name, flags)
    dd.private = image
    dd.io_fd[0] = image.file.io_fd
    data = image.host.file
    if data is not None and data is not image.file:
        dd.io_fd[1] = data.io_fd
    dd.size = image.size >> SECTOR_SHIFT
    dd.sector_size = image.file.sector_size if data is None else data.sector_size
    dd.cluster_size = image.geometry.cluster_size


@implements(Hooks.td_close)
def td_close(dd: DiskDriver) -> None:
    """Finish, write the tables back, release."""
    dd.private.close()


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver, id: DiskId) -> int:
    """What the header says."""
    image: Image = dd.private
    recorded = image.recorded_parent()
    if recorded is None:
        return TD_NO_PARENT
    id.name, id.drivertype = recorded.name, recorded.drivertype
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver, p: DiskDriver, flags: int) -> int:
    """Nothing is recorded by which a changed parent could be told; any size fits."""
    return 0


# ---- requests --------------------------------------------------------------------------------


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """Inside one cluster that lies plain in the page cache: at once. Else see `data.read`."""
    image: Image = dd.private
    table = image.young.get(sector >> image.table_shift)
    if table is not None and image.fast_read:
        skip = sector & image.sector_mask
        if skip + nb_sectors <= image.sector_mask + 1:
            entry = table.entries[(sector >> image.cluster_shift) & image.entry_mask]
            host = entry & image.offset_mask  # masks of `ondisk.decoder`
            if host and not entry & image.not_plain:
                res = image.file.read_now(host + (skip << 9), buf)
                if res is not None:
                    return cb(dd, res, sector, nb_sectors, id, prv)
            elif not entry:
                return cb(dd, BLK_NOT_ALLOCATED, sector, nb_sectors, id, prv)
    return image.read(image.clusters, Answer(cb, dd, id, prv), sector, nb_sectors, buf)


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """Inside one cluster that is the disk's own: at once. Else see `data.write`."""
    image: Image = dd.private
    table = image.young.get(sector >> image.table_shift)
    if table is not None and image.fast_write and table.checked and not image.busy:
        skip = sector & image.sector_mask
        if skip + nb_sectors <= image.sector_mask + 1:
            entry = table.entries[(sector >> image.cluster_shift) & image.entry_mask]
            host = entry & image.offset_mask  # masks of `ondisk.decoder`
            if host and entry & image.kind_mask == image.single:
                res = image.file.write_now(host + (skip << 9), buf)
                if res is not None:
                    return cb(dd, res, sector, nb_sectors, id, prv)
    if res := image.held_back():
        return res
    image.about_to_change(sector, nb_sectors)
    return image.write(Answer(cb, dd, id, prv), sector, buf)


@implements(Hooks.td_queue_write_compressed)
def td_queue_write_compressed(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """See `data.deflate`."""
    from tap_qcow2.data.deflate import write_compressed

    image: Image = dd.private
    if res := image.held_back():
        return res
    image.about_to_change(sector, nb_sectors)
    return write_compressed(image.clusters, Answer(cb, dd, id, prv), sector, nb_sectors, buf)


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """See `data.zero`."""
    return _zero(dd, sector, nb_sectors, (True, True), Answer(cb, dd, id, prv))


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
    """See `data.zero`."""
    return _zero(dd, sector, nb_sectors, (False, may_unmap), Answer(cb, dd, id, prv))


def _zero(
    dd: DiskDriver, sector: int, nb_sectors: int, how: tuple[bool, bool], answer: Answer
) -> int:
    from tap_qcow2.data.zero import Zeroing

    image: Image = dd.private
    if res := image.held_back():
        return res
    image.about_to_change(sector, nb_sectors)
    zeroing = Zeroing(image.clusters, image.writeback, *how, answer)
    return zeroing.run(sector, sector + nb_sectors)


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
    """Data and tables, in a safe order: see `tables.writeback`."""
    image: Image = dd.private
    if not image.writing:
        return cb(dd, -errno.EIO if image.broken else 0, 0, 0, id, prv)
    return image.writeback.flush(_flushed(dd, cb, id, prv))


def _flushed(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> Callable[[int], int]:
    return lambda res: cb(dd, res, 0, 0, id, prv)


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver) -> int:
    """Hand queued direct I/O to the kernel; write tables back where too many have changed."""
    image: Image = dd.private
    image.clusters.submit()
    if image.writing:
        image.writeback.when_needed()
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver, sid: int) -> int:
    """Answer what has finished."""
    image: Image = dd.private
    file = image.host.file if sid else image.file
    assert file is not None
    finished = file.reap()
    image.clusters.submit()  # what has finished may have led to more
    return finished


# ---- what it is ------------------------------------------------------------------------------


@implements(Hooks.td_probe)
def td_probe(name: str, head: bytes) -> bool:
    """By its magic and version."""
    return head.startswith(b"QFI\xfb") and head[4:8] in (b"\0\0\0\2", b"\0\0\0\3")


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterable[Extent]:
    """See `extents`."""
    from tap_qcow2.extents import extents

    return extents(dd.private, sector, nb_sectors)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """See `info`."""
    from tap_qcow2.info import info

    return info(dd.private)


@implements(Hooks.td_other_files)
def td_other_files(dd: DiskDriver) -> Sequence[str]:
    """The external data file."""
    header = dd.private.header
    return (header.data_file,) if header.has_data_file and header.data_file else ()


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """See `inspection`."""
    from tap_qcow2.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_bitmaps)
def td_bitmaps(dd: DiskDriver) -> list[Bitmap]:
    """See `bitmaps.listing`."""
    from tap_qcow2.bitmaps.listing import bitmaps

    return bitmaps(dd.private)


@implements(Hooks.td_bitmap_ranges)
def td_bitmap_ranges(dd: DiskDriver, name: str) -> Iterable[tuple[int, int]]:
    """See `bitmaps.listing`."""
    from tap_qcow2.bitmaps.listing import bitmap_ranges

    return bitmap_ranges(dd.private, name)


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """See `create.measure`."""
    from tap_qcow2.create.measure import measure

    return measure(size, options, data)


# ---- making and changing it ------------------------------------------------------------------


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """See `create.newimage`."""
    from tap_qcow2.create.newimage import create

    create(name, size, parent, options)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver, size: int) -> None:
    """See `change.resize`."""
    from tap_qcow2.change.resize import resize

    resize(dd.private, size)


@implements(Hooks.td_check)
def td_check(dd: DiskDriver, repair: str) -> CheckResult:
    """See `check.check`."""
    from tap_qcow2.check.check import check

    return check(dd.private, repair)


@implements(Hooks.td_amend)
def td_amend(dd: DiskDriver, options: Mapping[str, str]) -> None:
    """See `change.amend`."""
    from tap_qcow2.change.amend import amend

    amend(dd.private, options)


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver, parent: DiskId | None) -> None:
    """Record another parent."""
    image: Image = dd.private
    image.record_parent(parent)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver) -> None:
    """See `change.empty`."""
    from tap_qcow2.change.empty import make_empty

    make_empty(dd.private)


@implements(Hooks.td_snapshots)
def td_snapshots(dd: DiskDriver) -> list[Snapshot]:
    """What the snapshot table says."""
    from tap_qcow2.snapshots.table import each_snapshot

    return [snapshot.public() for snapshot in each_snapshot(dd.private.file, dd.private.header)]


@implements(Hooks.td_snapshot_create)
def td_snapshot_create(dd: DiskDriver, name: str) -> Snapshot:
    """See `snapshots.operations`."""
    from tap_qcow2.snapshots.operations import create_snapshot

    return create_snapshot(dd.private, name)


@implements(Hooks.td_snapshot_apply)
def td_snapshot_apply(dd: DiskDriver, name: str) -> None:
    """See `snapshots.operations`."""
    from tap_qcow2.snapshots.operations import apply_snapshot

    apply_snapshot(dd.private, name)


@implements(Hooks.td_snapshot_delete)
def td_snapshot_delete(dd: DiskDriver, name: str) -> None:
    """See `snapshots.operations`."""
    from tap_qcow2.snapshots.operations import delete_snapshot

    delete_snapshot(dd.private, name)
