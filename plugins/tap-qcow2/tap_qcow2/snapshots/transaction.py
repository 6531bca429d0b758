"""What an operation on snapshots is made of: each leaves a whole image, whenever it is interrupted.

In version 3 the dirty bit is set meanwhile, so that whoever opens the image after a crash puts
refcounts and COPIED flags right; in version 2 clusters may be leaked, and flags not fit refcounts.

Source: qcow2.rst, "Snapshots".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias

import attrs

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.snapshottable import SnapshotEntry, read_snapshots, table_bytes
from tap_qcow2.tables.structures import metadata_clusters
from tapcore import NotSupportedError

if TYPE_CHECKING:
    from tap_qcow2.image import Image

Run: TypeAlias = tuple[int, int]
"""Clusters side by side: the first one, and how many."""


@contextmanager
def changing(image: Image) -> Iterator[ExitStack]:
    """All tables are on disk before and after; the dirty bit is set between, where there is one.

    Yields what is to be undone if it fails before the switch. If it fails later, or undoing does,
    the dirty bit stays, so that the next opening repairs.
    """
    image.begin_change()
    image.stages.closing = True  # lazy refcounts are written, too
    header = image.header
    undone: list[bool] = []
    undo = ExitStack()
    undo.callback(undone.append, True)
    try:
        image.writeback.all_now()
        if header.version >= 3 and not header.dirty:
            header.incompatible |= layout.INCOMPAT_DIRTY
            image.header_writer.write_fields()
        try:
            yield undo
        except BaseException:
            undo.close()
            if undone:
                _settle(image)
            raise
        _settle(image)
    finally:
        image.stages.closing = False


def _settle(image: Image) -> None:
    """Everything fits together on disk: read anew what is in memory, and clear the dirty bit."""
    header = image.header
    image.metadata.reload_l1()
    image.allocator.metadata = metadata_clusters(image.metadata)
    image.writeback.all_now()
    if header.dirty and not image.stages.lazy:
        header.incompatible &= ~layout.INCOMPAT_DIRTY
        image.header_writer.write_fields()


def switch_header(image: Image, undo: ExitStack, **fields: int) -> None:
    """Write the header with other values, when all that it leads to then is on disk.

    Args:
        image: that `changing` prepared.
        undo: of this; from now on nothing is undone.
        fields: of the header.

    Raises:
        OSError: the old values stand; or, where not even those could be written again, nothing of
            what either leads to is undone.
    """
    header = image.header
    before = {name: getattr(header, name) for name in fields}
    image.metadata.flush()
    try:
        for name, value in fields.items():
            setattr(header, name, value)
        image.header_writer.write_fields()
    except BaseException:
        for name, value in before.items():
            setattr(header, name, value)
        done = undo.pop_all()
        image.header_writer.write_fields()
        undo.push(done)
        raise
    undo.pop_all()


def allocate(image: Image, length: int, undo: ExitStack) -> Run:
    """Clusters side by side for a table of so many bytes; none for none."""
    count = image.geometry.clusters(length)
    if not count:
        return 0, 0
    first = image.allocator.allocate_contiguous(count)
    undo.callback(image.allocator.take_back, first, count)
    return first, count


# ---- the table of snapshots ------------------------------------------------------------------


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


def rewrite_snapshots(image: Image, snapshots: list[SnapshotEntry]) -> None:
    """Write the table of snapshots anew, each entry with all that version 3 demands.

    Raises:
        TapError, OSError: the old one stays.
    """
    with changing(image) as undo:
        table = allocate_table(image, snapshots, undo)
        image.writeback.all_now()
        switch_table(image, table, undo)


def allocate_table(image: Image, snapshots: list[SnapshotEntry], undo: ExitStack) -> NewTable:
    """A place for a table of some snapshots."""
    for entry in snapshots:
        if entry.disk_size is None:  # it had the size that the disk has still
            entry.disk_size = image.header.size
    content = b"".join(entry.serialize() for entry in snapshots)
    if len(content) > layout.MAX_SNAPSHOT_TABLE_BYTES:
        raise NotSupportedError("has no room for another snapshot in its table")
    place = allocate(image, len(content), undo) if content else (0, 0)
    return NewTable(len(snapshots), content, place)


def switch_table(image: Image, table: NewTable, undo: ExitStack) -> None:
    """Write a new table of snapshots, make it the valid one, and give up the old one."""
    header, bits = image.header, image.cluster_bits
    first = header.snapshots_offset >> bits
    old_bytes = table_bytes(read_snapshots(image.file, header))
    old = range(first, first + image.geometry.clusters(old_bytes))
    offset = table.place[0] << bits
    image.file.write_metadata(offset, table.content.ljust(table.place[1] << bits, b"\0"))
    switch_header(image, undo, nb_snapshots=table.number, snapshots_offset=offset)
    image.refcounts.released.extend(old)
    image.writeback.all_now()
