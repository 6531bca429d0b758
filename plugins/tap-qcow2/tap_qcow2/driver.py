"""The hooks of the format: the fast paths, and the way to everything else.

The rest is loaded when it is first needed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tap_qcow2.ondisk.layout import EXT_BITMAPS
from tapcore import (
    BLK_NOT_ALLOCATED,
    TD_NO_PARENT,
    Answer,
    DiskDriver,
    DiskId,
    DiskInfo,
    FormatOption,
    Hooks,
    Magic,
    TdCallback,
    answer_over,
    implements,
)
from tapcore.clusters import (  # noqa: F401 -- the hooks of requests
    td_do_callbacks,
    td_extents,
    td_places,
    td_queue_discard,
    td_queue_write_compressed,
    td_queue_write_zeroes,
    td_submit,
)

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tapcore import Bitmap, CheckResult, Inspection, Measurement, Snapshot

_AMENDABLE = (
    FormatOption("compat", "version of the format: 0.10 is 2, 1.1 is 3", ("0.10", "1.1"), "1.1"),
    FormatOption("lazy_refcounts", "refcounts are written late", ("on", "off"), "off"),
    FormatOption("refcount_bits", "width of a refcount", default="16"),
)

disk_info = DiskInfo(
    handle="qcow2",
    name="qcow2 disk (qcow2)",
    api=1,
    makes_unnamed=True,
    suffixes=(".qcow2",),
    magic=(Magic(b"QFI\xfb\0\0\0\2"), Magic(b"QFI\xfb\0\0\0\3")),
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
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """See `open`; `facts`, where no more is wanted."""
    if dd.options.facts_only:
        from tap_qcow2.facts import open_facts

        # the hooks that are called then take it for what it is
        dd.private = open_facts(dd, name)  # type: ignore[assignment]
        return
    from tap_qcow2.open import open_image

    dd.private = open_image(dd, name, flags)


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Image]) -> None:
    """Finish, write the tables back, release."""
    dd.private.close()


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver[Image], id: DiskId) -> int:
    """What the header says."""
    recorded = dd.private.header.parent
    if recorded is None:
        return TD_NO_PARENT
    id.name, id.drivertype = recorded.name, recorded.drivertype
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver[Image], p: DiskDriver[Any], flags: int) -> int:
    """Nothing is recorded by which a changed parent could be told; any size fits."""
    return 0


# ---- requests --------------------------------------------------------------------------------


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[Image],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Inside one cluster that lies plain in the page cache: at once. Else by way of the core."""
    image = dd.private
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
    return image.clusters.read(sector, nb_sectors, buf, Answer(cb, dd, id, prv))


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver[Image],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Inside one cluster that is the disk's own: at once. Else by way of the core."""
    image = dd.private
    table = image.young.get(sector >> image.table_shift)
    if table is not None and image.fast_write and table.sound and not image.busy:
        skip = sector & image.sector_mask
        if skip + nb_sectors <= image.sector_mask + 1:
            entry = table.entries[(sector >> image.cluster_shift) & image.entry_mask]
            host = entry & image.offset_mask  # masks of `ondisk.decoder`
            if host and entry & image.kind_mask == image.single:
                res = image.file.write_now(host + (skip << 9), buf)
                if res is not None:
                    return cb(dd, res, sector, nb_sectors, id, prv)
    return image.clusters.write(sector, nb_sectors, buf, Answer(cb, dd, id, prv))


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver[Image], cb: TdCallback, id: int, prv: Any) -> int:
    """As the core; but nothing is safe in an image that was given up."""
    if dd.private.broken:
        return cb(dd, -errno.EIO, 0, 0, id, prv)
    return dd.private.clusters.flush(answer_over(cb, dd, 0, 0, id, prv))


# ---- what it is ------------------------------------------------------------------------------


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """See `info`."""
    from tap_qcow2.info import info

    return info(dd.private)


@implements(Hooks.td_other_files)
def td_other_files(dd: DiskDriver[Image]) -> Sequence[str]:
    """The external data file."""
    header = dd.private.header
    return (header.data_file,) if header.has_data_file and header.data_file else ()


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """See `inspection`."""
    from tap_qcow2.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_bitmaps)
def td_bitmaps(dd: DiskDriver[Image]) -> list[Bitmap]:
    """See `bitmaps.listing`."""
    if dd.private.header.extension(EXT_BITMAPS) is None:  # as nearly always
        return []
    from tap_qcow2.bitmaps.listing import bitmaps

    return bitmaps(dd.private)


@implements(Hooks.td_bitmap_ranges)
def td_bitmap_ranges(dd: DiskDriver[Image], name: str) -> Iterable[tuple[int, int]]:
    """See `bitmaps.listing`."""
    from tap_qcow2.bitmaps.listing import bitmap_ranges

    return bitmap_ranges(dd.private, name)


@implements(Hooks.td_bitmap_add)
def td_bitmap_add(dd: DiskDriver[Image], name: str, granularity: int, enabled: bool) -> None:
    """See `bitmaps.change`."""
    from tap_qcow2.bitmaps.change import add_bitmap

    add_bitmap(dd.private, name, granularity, enabled=enabled)


@implements(Hooks.td_bitmap_remove)
def td_bitmap_remove(dd: DiskDriver[Image], name: str) -> None:
    """See `bitmaps.change`."""
    from tap_qcow2.bitmaps.change import remove_bitmap

    remove_bitmap(dd.private, name)


@implements(Hooks.td_bitmap_clear)
def td_bitmap_clear(dd: DiskDriver[Image], name: str) -> None:
    """See `bitmaps.change`."""
    from tap_qcow2.bitmaps.change import clear_bitmap

    clear_bitmap(dd.private, name)


@implements(Hooks.td_bitmap_enable)
def td_bitmap_enable(dd: DiskDriver[Image], name: str, enabled: bool) -> None:
    """See `bitmaps.change`."""
    from tap_qcow2.bitmaps.change import enable_bitmap

    enable_bitmap(dd.private, name, enabled=enabled)


@implements(Hooks.td_bitmap_merge)
def td_bitmap_merge(dd: DiskDriver[Image], name: str, ranges: Iterable[tuple[int, int]]) -> None:
    """See `bitmaps.change`."""
    from tap_qcow2.bitmaps.change import merge_into_bitmap

    merge_into_bitmap(dd.private, name, ranges)


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
def td_resize(dd: DiskDriver[Image], size: int) -> None:
    """See `change.resize`."""
    from tap_qcow2.change.resize import resize

    resize(dd.private, size)


@implements(Hooks.td_check)
def td_check(dd: DiskDriver[Image], repair: str) -> CheckResult:
    """See `check.check`."""
    from tap_qcow2.check.check import check

    return check(dd.private, repair)


@implements(Hooks.td_amend)
def td_amend(dd: DiskDriver[Image], options: Mapping[str, str]) -> None:
    """See `change.amend`."""
    from tap_qcow2.change.amend import amend

    amend(dd.private, options)


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver[Image], parent: DiskId | None) -> None:
    """Record another parent."""
    dd.private.record_parent(parent)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver[Image]) -> None:
    """See `change.empty`."""
    from tap_qcow2.change.empty import make_empty

    make_empty(dd.private)


@implements(Hooks.td_snapshots)
def td_snapshots(dd: DiskDriver[Image]) -> list[Snapshot]:
    """What the snapshot table says."""
    if not dd.private.header.nb_snapshots:  # as mostly
        return []
    from tap_qcow2.ondisk.snapshottable import each_snapshot

    return [snapshot.public() for snapshot in each_snapshot(dd.private.file, dd.private.header)]


@implements(Hooks.td_snapshot_create)
def td_snapshot_create(dd: DiskDriver[Image], name: str) -> Snapshot:
    """See `snapshots.operations`."""
    from tap_qcow2.snapshots.operations import create_snapshot

    return create_snapshot(dd.private, name)


@implements(Hooks.td_snapshot_apply)
def td_snapshot_apply(dd: DiskDriver[Image], name: str) -> None:
    """See `snapshots.operations`."""
    from tap_qcow2.snapshots.operations import apply_snapshot

    apply_snapshot(dd.private, name)


@implements(Hooks.td_snapshot_delete)
def td_snapshot_delete(dd: DiskDriver[Image], name: str) -> None:
    """See `snapshots.operations`."""
    from tap_qcow2.snapshots.operations import delete_snapshot

    delete_snapshot(dd.private, name)
