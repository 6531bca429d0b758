"""Saving bitmaps: new bits into new clusters, a new table, and then the directory's entry.

Each step is safe on disk before the next begins, and only the last one takes the mark IN_USE away.
So a crash leaves a bitmap that says nothing, never one that is wrong; at worst clusters are leaked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from tap_qcow2.bitmaps.bits import cut, either
from tap_qcow2.bitmaps.directory import (
    ALL_ONES,
    BitmapEntry,
    bits_of,
    disk_size,
    read_bits,
    read_table,
    table_entries,
)
from tap_qcow2.bitmaps.tracker import Recording, write_flags
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.tables.structures import metadata_clusters
from tapcore import ImageFormatError

if TYPE_CHECKING:
    from tap_qcow2.image import Image


@attrs.define
class NewTable:
    """What takes the place of a bitmap's table.

    Attributes:
        entry: the directory's, as it was.
        table: the entries that it will have.
        offset: where they lie, bytes; the old place where nothing changes.
        taken: clusters that were allocated.
        given_up: clusters that it does not need any more.
    """

    entry: BitmapEntry
    table: Words
    offset: int
    taken: list[int] = attrs.field(factory=list)
    given_up: list[int] = attrs.field(factory=list)


def store_bitmaps(image: Image, recordings: list[Recording]) -> None:
    """Save bitmaps that are marked as in use.

    Args:
        image: open for writing, with nothing in flight.
        recordings: of these bitmaps.

    Raises:
        TapError, OSError: they stay marked.
    """
    tables: list[NewTable] = []
    try:
        for recording in recordings:
            entry = recording.entry
            tables.append(NewTable(entry, read_table(image, entry), entry.table_offset))
            _Filling(image, tables[-1]).fill(recording)
        _check_given_up(image, tables)
        image.writeback.all_now()  # the new clusters are counted
        image.flush_file()
    except BaseException:
        for new in tables:
            for cluster in new.taken:
                image.refcounts.take_back(cluster, 1)
        raise
    _publish(image, tables)
    for new in tables:
        image.refcounts.metadata.difference_update(new.given_up)
        image.refcounts.metadata.update(new.taken)
        image.refcounts.released.extend(new.given_up)


def _check_given_up(image: Image, tables: list[NewTable]) -> None:
    """What a damaged bitmap calls its own may be something else's."""
    given_up = [cluster for new in tables for cluster in new.given_up]
    if not given_up:
        return
    others = metadata_clusters(image, with_bitmaps=False)
    if len(set(given_up)) < len(given_up) or not others.isdisjoint(given_up):
        raise ImageFormatError("has a bitmap that overlaps other structures")


class _Filling:
    """Brings a bitmap's new bits to the disk, where nothing points to them yet."""

    def __init__(self, image: Image, new: NewTable) -> None:
        self._image = image
        self._new = new

    def fill(self, recording: Recording) -> None:
        """Write what has changed, and a table that leads to it."""
        image, new = self._image, self._new
        size = disk_size(image)
        bits = bits_of(new.entry, size)
        needed = table_entries(image, new.entry, size)
        before = new.table[:]
        self._set_length(needed)
        recorded = recording.recorded()
        touched = {number for number in recorded if number < needed}
        if size < recording.size:
            touched.add(needed - 1)  # bits behind the disk's end are to be zero
        per_cluster = image.geometry.cluster_size << 3
        for number in sorted(touched):
            old = read_bits(image, new.table[number])
            content = old if number not in recorded else either(old, recorded[number])
            content = cut(content, bits - number * per_cluster)
            if content != old:
                self._replace(number, content)
        if new.table != before:
            self._write_table()

    def _set_length(self, needed: int) -> None:
        table = self._new.table
        for word in table[needed:]:
            self._give_up(word)
        del table[needed:]
        table.extend(bigendian.zeroes(needed - len(table)))

    def _give_up(self, word: int) -> None:
        offset = word & layout.OFFSET_MASK
        if offset:
            self._new.given_up.append(offset >> self._image.cluster_bits)

    def _replace(self, number: int, content: bytes) -> None:
        """Let a table entry lead to other bits."""
        image, new = self._image, self._new
        self._give_up(new.table[number])
        if not any(content):
            new.table[number] = 0
            return
        if content == b"\xff" * len(content):
            new.table[number] = ALL_ONES
            return
        cluster, _ = image.refcounts.allocate(1)
        new.taken.append(cluster)
        new.table[number] = cluster << image.cluster_bits
        image.file.write_metadata(new.table[number], content)

    def _write_table(self) -> None:
        image, new = self._image, self._new
        count = image.geometry.clusters(len(new.table) * 8)
        first = image.refcounts.allocate_contiguous(count)
        new.taken.extend(range(first, first + count))
        content = bigendian.to_bytes(new.table).ljust(count << image.cluster_bits, b"\0")
        old = new.offset >> image.cluster_bits
        new.offset = first << image.cluster_bits
        image.file.write_metadata(new.offset, content)
        new.given_up.extend(range(old, old + image.geometry.clusters(new.entry.table_size * 8)))


def _publish(image: Image, tables: list[NewTable]) -> None:
    """Let the directory lead to the new tables; then say that the bitmaps are saved.

    Between offset and length of a table a crash may come: both together must make sense always.
    """
    for write in (_write_first, _write_second, _write_saved):
        wrote = False
        for new in tables:
            wrote |= write(image, new)
        if wrote:
            image.flush_file()


def _write_first(image: Image, new: NewTable) -> bool:
    return _write_length(image, new) if _shrinks(new) else _write_offset(image, new)


def _write_second(image: Image, new: NewTable) -> bool:
    return _write_offset(image, new) if _shrinks(new) else _write_length(image, new)


def _shrinks(new: NewTable) -> bool:
    return len(new.table) < new.entry.table_size


def _write_offset(image: Image, new: NewTable) -> bool:
    if new.offset == new.entry.table_offset:
        return False
    image.file.write_metadata(new.entry.place, new.offset.to_bytes(8, "big"))
    return True


def _write_length(image: Image, new: NewTable) -> bool:
    if len(new.table) == new.entry.table_size:
        return False
    image.file.write_metadata(new.entry.place + 8, len(new.table).to_bytes(4, "big"))
    return True


def _write_saved(image: Image, new: NewTable) -> bool:
    write_flags(image, new.entry, new.entry.flags)
    return True
