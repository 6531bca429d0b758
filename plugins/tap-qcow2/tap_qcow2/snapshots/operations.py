"""Internal snapshots: made, applied and deleted.

Each operation counts up first what will be referred to once more, then writes what is new where
nothing is, switches to that with one write of the header, and last counts down what was given up.
In version 3 the dirty bit is set meanwhile, so that whoever opens the image after a crash puts
refcounts and COPIED flags right; in version 2 clusters may be leaked, and flags not fit refcounts.

Source: qcow2.rst, "Snapshots".
"""

from __future__ import annotations

import errno
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import attrs

from tap_qcow2.check.verdicts import Rules
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.snapshots.table import (
    SnapshotEntry,
    check_snapshot_l1,
    find_snapshot,
    read_snapshots,
    table_bytes,
)
from tap_qcow2.tables.copiedflags import clear_flags, set_flags
from tap_qcow2.tables.references import count_down, count_up, l2_offsets, references
from tap_qcow2.tables.structures import metadata_clusters
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

Run = tuple[int, int]
"""Clusters side by side: the first one, and how many."""


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
    snapshots = read_snapshots(image)
    if len(snapshots) >= layout.MAX_SNAPSHOTS:
        raise NotSupportedError(f"an image has {layout.MAX_SNAPSHOTS} snapshots at most")
    sec, nsec = divmod(time.time_ns(), 10**9)
    new = SnapshotEntry(0, image.header.l1_size, _new_id(snapshots), name, sec, nsec)
    new.disk_size = image.header.size
    with _changing(image) as undo:
        l1 = image.tables.l1
        _share(image, l1, undo)
        place = _allocate(image, len(l1) * 8, undo)
        new.l1_offset = place[0] << image.cluster_bits
        table = _allocate_table(image, [*snapshots, new], undo)
        image.writeback.all_now()
        clear_flags(image, l2_offsets(image, l1))
        _write_l1(image, image.header.l1_table_offset, l1)
        _write_l1(image, new.l1_offset, l1, place[1])
        _switch_table(image, table, undo)
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
    entry = find_snapshot(read_snapshots(image), wanted)
    l1 = _l1_of(image, entry)
    size = header.size if entry.disk_size is None else entry.disk_size
    entries = max(image.geometry.l1_entries(size), len(l1), 1)
    if entries * 8 > layout.MAX_L1_BYTES:
        name = printable(entry.name)
        raise ImageFormatError(f"has a snapshot '{name}' with an impossible size ({size})")
    l1.extend(bigendian.zeroes(entries - len(l1)))
    _tell_bitmaps(image, size)
    with _changing(image) as undo:
        old, old_place = image.tables.l1, _l1_place(image)
        _validate(image, old)
        _share(image, l1, undo)
        place = _allocate(image, len(l1) * 8, undo)
        image.writeback.all_now()
        clear_flags(image, l2_offsets(image, l1))
        offset = place[0] << image.cluster_bits
        _write_l1(image, offset, l1, place[1])
        _switch(image, undo, l1_table_offset=offset, l1_size=len(l1), size=size)
        count_down(image, old, [old_place])
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
    snapshots = read_snapshots(image)
    entry = find_snapshot(snapshots, wanted)
    l1 = _l1_of(image, entry)
    snapshots.remove(entry)
    with _changing(image) as undo:
        _validate(image, l1)
        table = _allocate_table(image, snapshots, undo)
        image.writeback.all_now()
        _switch_table(image, table, undo)
        clusters = image.geometry.clusters(entry.l1_size * 8)
        count_down(image, l1, [(entry.l1_offset >> image.cluster_bits, clusters)])
        _set_flags(image)


def rewrite_snapshots(image: Image, snapshots: list[SnapshotEntry]) -> None:
    """Write the table of snapshots anew, each entry with all that version 3 demands.

    Raises:
        TapError, OSError: the old one stays.
    """
    with _changing(image) as undo:
        table = _allocate_table(image, snapshots, undo)
        image.writeback.all_now()
        _switch_table(image, table, undo)


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
    if header.dirty and not image.lazy:
        from tap_qcow2.check.check import repair_dirty

        repair_dirty(image)


@contextmanager
def _changing(image: Image) -> Iterator[ExitStack]:
    """All tables are on disk before and after; the dirty bit is set between, where there is one.

    Yields what is to be undone if it fails before the switch. If it fails later, or undoing does,
    the dirty bit stays, so that the next opening repairs.
    """
    image.begin_writing()
    image.closing = True  # lazy refcounts are written, too
    header = image.header
    undone: list[bool] = []
    undo = ExitStack()
    undo.callback(undone.append, True)
    try:
        image.writeback.all_now()
        if header.version >= 3 and not header.dirty:
            header.incompatible |= layout.INCOMPAT_DIRTY
            image.write_header_fields()
        try:
            yield undo
        except BaseException:
            undo.close()
            if undone:
                _settle(image)
            raise
        _settle(image)
    finally:
        image.closing = False


def _settle(image: Image) -> None:
    """Everything fits together on disk: read anew what is in memory, and clear the dirty bit."""
    header = image.header
    l1 = bigendian.read(image.file, header.l1_table_offset, header.l1_size)
    image.tables.forget()
    image.tables.l1 = l1
    image.tables.l1_offset = header.l1_table_offset
    image.refcounts.metadata = metadata_clusters(image)
    image.writeback.all_now()
    if header.dirty and not image.lazy:
        header.incompatible &= ~layout.INCOMPAT_DIRTY
        image.write_header_fields()


def _tell_bitmaps(image: Image, size: int) -> None:
    """All content, and perhaps the size, is about to change."""
    if image.header.extension(layout.EXT_BITMAPS) is not None and size != image.size:
        from tap_qcow2.bitmaps.directory import resize_bitmaps

        image.begin_writing()
        resize_bitmaps(image, image.size, size)
    image.about_to_change(0, image.size >> SECTOR_SHIFT)


# ---- parts of an operation -------------------------------------------------------------------


def _share(image: Image, l1: Words, undo: ExitStack) -> None:
    """Count what an L1 table leads to once more."""
    undo.callback(_set_flags, image)
    count_up(image, l1)
    undo.callback(count_down, image, l1)


def _set_flags(image: Image) -> None:
    """Let the COPIED flags of the active tables be what the refcounts demand."""
    header = image.header
    rules = Rules.of(header, image.file.size)
    l1 = bigendian.read(image.file, header.l1_table_offset, header.l1_size)
    set_flags(image, rules, l2_offsets(image, l1), image.refcounts)


def _validate(image: Image, l1: Words) -> None:
    """Everything that an L1 table leads to will be counted down: it must be possible."""
    for _ in references(image, l1):
        pass


def _l1_of(image: Image, entry: SnapshotEntry) -> Words:
    check_snapshot_l1(image, entry)
    return bigendian.read(image.file, entry.l1_offset, entry.l1_size)


def _l1_place(image: Image) -> Run:
    header = image.header
    clusters = image.geometry.clusters(header.l1_size * 8)  # none of a disk without a sector
    return header.l1_table_offset >> image.cluster_bits, clusters


def _write_l1(image: Image, offset: int, l1: Words, clusters: int = 0) -> None:
    """Write an L1 table of which all is shared; filled up with zeroes to so many clusters."""
    shared = array("Q", [entry & ~layout.COPIED for entry in l1])
    content = bigendian.to_bytes(shared).ljust(clusters << image.cluster_bits, b"\0")
    image.file.write_metadata(offset, content)


def _allocate(image: Image, length: int, undo: ExitStack) -> Run:
    """Clusters side by side for a table of so many bytes; none for none."""
    count = image.geometry.clusters(length)
    if not count:
        return 0, 0
    first = image.refcounts.allocate_contiguous(count)
    undo.callback(image.refcounts.take_back, first, count)
    return first, count


@attrs.frozen
class NewTable:
    """A table of snapshots that is to be written.

    Attributes:
        number: of its entries.
        content: bytes.
        place: its clusters; none where there are no entries.
    """

    number: int
    content: bytes
    place: Run


def _allocate_table(image: Image, snapshots: list[SnapshotEntry], undo: ExitStack) -> NewTable:
    for entry in snapshots:
        if entry.disk_size is None:  # it had the size that the disk has still
            entry.disk_size = image.header.size
    content = b"".join(entry.serialize() for entry in snapshots)
    if len(content) > layout.MAX_SNAPSHOT_TABLE_BYTES:
        raise NotSupportedError("has no room for another snapshot in its table")
    place = _allocate(image, len(content), undo) if content else (0, 0)
    return NewTable(len(snapshots), content, place)


def _switch_table(image: Image, table: NewTable, undo: ExitStack) -> None:
    """Write a new table of snapshots, make it the valid one, and give up the old one."""
    header, bits = image.header, image.cluster_bits
    first = header.snapshots_offset >> bits
    old = range(first, first + image.geometry.clusters(table_bytes(read_snapshots(image))))
    offset = table.place[0] << bits
    image.file.write_metadata(offset, table.content.ljust(table.place[1] << bits, b"\0"))
    _switch(image, undo, nb_snapshots=table.number, snapshots_offset=offset)
    image.refcounts.released.extend(old)
    image.writeback.all_now()


def _switch(image: Image, undo: ExitStack, **fields: int) -> None:
    """Write the header with other values, when all that it leads to then is on disk.

    Raises:
        OSError: the old values stand; or, where not even those could be written again, nothing of
            what either leads to is undone.
    """
    header = image.header
    before = {name: getattr(header, name) for name in fields}
    image.flush_file()
    try:
        for name, value in fields.items():
            setattr(header, name, value)
        image.write_header_fields()
    except BaseException:
        for name, value in before.items():
            setattr(header, name, value)
        done = undo.pop_all()
        image.write_header_fields()
        undo.push(done)
        raise
    undo.pop_all()
