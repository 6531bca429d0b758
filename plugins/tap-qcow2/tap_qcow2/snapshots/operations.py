"""Internal snapshots: made, applied and deleted.

Each operation counts up first what will be referred to once more, then writes what is new where
nothing is, switches to that with one write of the header, and last counts down what was given up.
Source: qcow2.rst, "Snapshots".
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import shared
from tap_qcow2.ondisk.snapshottable import SnapshotEntry, find_snapshot, read_snapshots, snapshot_l1
from tap_qcow2.ondisk.verdicts import Rules
from tap_qcow2.snapshots.transaction import (
    Run,
    allocate,
    allocate_table,
    changing,
    switch_header,
    switch_table,
)
from tap_qcow2.tables.copiedflags import clear_flags, set_flags
from tap_qcow2.tables.references import ReferenceCounting, l2_offsets, references
from tapcore import (
    SECTOR_SHIFT,
    ImageFormatError,
    ImageOpenError,
    NotSupportedError,
    Snapshot,
    UsageError,
    printable,
)

if TYPE_CHECKING:
    from tap_qcow2.image import Image

_MAX_NAME: Final = 255
"""Bytes of a name; QEMU keeps as many."""


# ---- the operations --------------------------------------------------------------------------


def create_snapshot(image: Image, name: str) -> Snapshot:
    """Keep the present content as a snapshot; it is on disk when this returns.

    Args:
        image: open for writing, with nothing in flight.
        name: for people.

    Raises:
        TapError, OSError: there is no snapshot, and nothing has changed.
    """
    length = len(name.encode("utf-8", "surrogateescape"))
    if not 0 < length <= _MAX_NAME:
        raise UsageError(f"a snapshot's name has 1 to {_MAX_NAME} bytes")
    _prepare(image)
    snapshots = read_snapshots(image.file, image.header)
    if len(snapshots) >= layout.MAX_SNAPSHOTS:
        raise NotSupportedError(f"an image has {layout.MAX_SNAPSHOTS} snapshots at most")
    sec, nsec = divmod(time.time_ns(), 10**9)
    new = SnapshotEntry(0, image.header.l1_size, _new_id(snapshots), name, sec, nsec)
    new.disk_size = image.header.size
    with changing(image) as undo:
        l1 = image.tables.l1
        _share(image, l1, undo)
        place = allocate(image, len(l1) * 8, undo)
        new.l1_offset = place[0] << image.cluster_bits
        table = allocate_table(image, [*snapshots, new], undo)
        image.writeback.all_now()
        clear_flags(image.metadata, l2_offsets(image.metadata, l1))
        _write_l1(image, image.header.l1_table_offset, l1)
        _write_l1(image, new.l1_offset, l1, place[1])
        switch_table(image, table, undo)
    return new.public()


def apply_snapshot(image: Image, wanted: str) -> None:
    """Make the disk's content, and size, those of a snapshot, which stays.

    Args:
        image: open for writing, with nothing in flight.
        wanted: the snapshot's id, or else its name.

    Raises:
        TapError, OSError: nothing has changed.
    """
    _prepare(image)
    header = image.header
    entry = find_snapshot(read_snapshots(image.file, image.header), wanted)
    l1 = _l1_of(image, entry)
    size = header.size if entry.disk_size is None else entry.disk_size
    entries = max(image.geometry.l1_entries(size), len(l1), 1)
    if entries * 8 > layout.MAX_L1_BYTES:
        name = printable(entry.name)
        raise ImageFormatError(f"has a snapshot '{name}' with an impossible size ({size})")
    l1.extend(bigendian.zeroes(entries - len(l1)))
    _tell_bitmaps(image, size)
    with changing(image) as undo:
        old, old_place = image.tables.l1, _l1_place(image)
        _validate(image, old)
        _share(image, l1, undo)
        place = allocate(image, len(l1) * 8, undo)
        image.writeback.all_now()
        clear_flags(image.metadata, l2_offsets(image.metadata, l1))
        offset = place[0] << image.cluster_bits
        _write_l1(image, offset, l1, place[1])
        switch_header(image, undo, l1_table_offset=offset, l1_size=len(l1), size=size)
        _counting(image).down(old, [old_place])
    image.size = size >> SECTOR_SHIFT << SECTOR_SHIFT
    image.dd.size = size >> SECTOR_SHIFT


def delete_snapshot(image: Image, wanted: str) -> None:
    """Forget a snapshot, and give back what only it used.

    Args:
        image: open for writing, with nothing in flight.
        wanted: the snapshot's id, or else its name.

    Raises:
        TapError, OSError: nothing has changed, or at worst clusters are leaked.
    """
    _prepare(image)
    snapshots = read_snapshots(image.file, image.header)
    entry = find_snapshot(snapshots, wanted)
    l1 = _l1_of(image, entry)
    snapshots.remove(entry)
    with changing(image) as undo:
        _validate(image, l1)
        table = allocate_table(image, snapshots, undo)
        image.writeback.all_now()
        switch_table(image, table, undo)
        clusters = image.geometry.clusters(entry.l1_size * 8)
        _counting(image).down(l1, [(entry.l1_offset >> image.cluster_bits, clusters)])
        _set_flags(image)


def _new_id(snapshots: list[SnapshotEntry]) -> str:
    numbers = [int(each.id) for each in snapshots if each.id.isascii() and each.id.isdigit()]
    return str(max(numbers, default=0) + 1)


# ---- before and after ------------------------------------------------------------------------


def _prepare(image: Image) -> None:
    """Refuse what cannot be done; repair what was not closed."""
    header = image.header
    if header.has_data_file:
        raise NotSupportedError("has an external data file, which snapshots do not cover")
    if header.corrupt:
        raise ImageOpenError("is marked as corrupt: check --repair all", errno=errno.EROFS)
    if header.dirty and not image.stages.lazy:
        from tap_qcow2.check.check import repair_dirty

        repair_dirty(image)


def _tell_bitmaps(image: Image, size: int) -> None:
    """All content, and perhaps the size, is about to change."""
    if image.header.extension(layout.EXT_BITMAPS) is not None and size != image.size:
        from tap_qcow2.bitmaps.resize import resize_bitmaps

        image.begin_change()
        resize_bitmaps(image, image.size, size)
    image.clusters.begin_writing()
    image.about_to_change(0, image.size >> SECTOR_SHIFT)


# ---- parts of an operation -------------------------------------------------------------------


def _share(image: Image, l1: Words, undo: ExitStack) -> None:
    """Count what an L1 table leads to once more."""
    undo.callback(_set_flags, image)
    counting = _counting(image)
    counting.up(l1)
    undo.callback(counting.down, l1)


def _counting(image: Image) -> ReferenceCounting:
    return ReferenceCounting(image.metadata, image.writeback)


def _set_flags(image: Image) -> None:
    """Let the COPIED flags of the active tables be what the refcounts demand."""
    header = image.header
    rules = Rules.of(header, image.file.size)
    l1 = bigendian.read(image.file, header.l1_table_offset, header.l1_size)
    set_flags(image.metadata, rules, l2_offsets(image.metadata, l1), image.refcounts)


def _validate(image: Image, l1: Words) -> None:
    """Everything that an L1 table leads to will be counted down: it must be possible."""
    for _ in references(image.metadata, l1):
        pass


def _l1_of(image: Image, entry: SnapshotEntry) -> Words:
    return snapshot_l1(image.file, image.header, entry)


def _l1_place(image: Image) -> Run:
    header = image.header
    clusters = image.geometry.clusters(header.l1_size * 8)  # none of a disk without a sector
    return header.l1_table_offset >> image.cluster_bits, clusters


def _write_l1(image: Image, offset: int, l1: Words, clusters: int = 0) -> None:
    """Write an L1 table of which all is shared; filled up with zeroes to so many clusters."""
    content = bigendian.to_bytes(shared(l1)).ljust(clusters << image.cluster_bits, b"\0")
    image.file.write_metadata(offset, content)
