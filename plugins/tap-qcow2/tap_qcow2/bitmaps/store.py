"""Saving bitmaps: new bits into new clusters, a new table, and then the directory's entry.

Each step is safe on disk before the next begins, and only the last one takes the mark IN_USE away.
So a crash leaves a bitmap that says nothing, never one that is wrong; at worst clusters are leaked.
"""

from __future__ import annotations

import attrs

from tap_qcow2.bitmaps.bits import cut, either
from tap_qcow2.bitmaps.recording import Recording
from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.bitmapdirectory import (
    BitmapEntry,
    bits_of,
    disk_size,
    read_bits,
    read_table,
    table_entries,
    write_flags,
)
from tap_qcow2.ondisk.entries import BITS_ALL_SET, offset_of
from tap_qcow2.tables.metadata import Metadata
from tap_qcow2.tables.structures import metadata_clusters
from tapcore import ImageFile, ImageFormatError
from tapcore.clusters import Writeback


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


def store_bitmaps(metadata: Metadata, writeback: Writeback, recordings: list[Recording]) -> None:
    """Save bitmaps that are marked as in use.

    Args:
        metadata: of an image that is written, with nothing in flight.
        writeback: of its tables.
        recordings: of these bitmaps.

    Raises:
        TapError, OSError: they stay marked.
    """
    tables: list[NewTable] = []
    try:
        for recording in recordings:
            entry = recording.entry
            table = read_table(metadata.file, entry)
            tables.append(NewTable(entry, table, entry.table_offset))
            _Filling(metadata, tables[-1]).fill(recording)
        _check_given_up(metadata, tables)
        writeback.all_now()  # the new clusters are counted
        metadata.flush()
    except BaseException:
        for new in tables:
            for cluster in new.taken:
                metadata.allocator.take_back(cluster, 1)
        raise
    _publish(metadata, tables)
    for new in tables:
        metadata.allocator.metadata.difference_update(new.given_up)
        metadata.allocator.metadata.update(new.taken)
        metadata.refcounts.released.extend(new.given_up)


def _check_given_up(metadata: Metadata, tables: list[NewTable]) -> None:
    """What a damaged bitmap calls its own may be something else's."""
    given_up = [cluster for new in tables for cluster in new.given_up]
    if not given_up:
        return
    others = metadata_clusters(metadata, with_bitmaps=False)
    if len(set(given_up)) < len(given_up) or not others.isdisjoint(given_up):
        raise ImageFormatError("has a bitmap that overlaps other structures")


class _Filling:
    """Brings a bitmap's new bits to the disk, where nothing points to them yet."""

    def __init__(self, metadata: Metadata, new: NewTable) -> None:
        self._metadata = metadata
        self._file = metadata.file
        self._header = metadata.header
        self._new = new

    def fill(self, recording: Recording) -> None:
        """Write what has changed, and a table that leads to it."""
        new, header = self._new, self._header
        size = disk_size(header)
        bits = bits_of(new.entry, size)
        needed = table_entries(header, new.entry, size)
        before = new.table[:]
        self._set_length(needed)
        recorded = recording.recorded()
        touched = {number for number in recorded if number < needed}
        if size < recording.size:
            touched.add(needed - 1)  # bits behind the disk's end are to be zero
        per_cluster = self._metadata.geometry.cluster_size << 3
        for number in sorted(touched):
            old = read_bits(self._file, header, new.table[number])
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
        if offset := offset_of(word):
            self._new.given_up.append(offset >> self._header.cluster_bits)

    def _replace(self, number: int, content: bytes) -> None:
        """Let a table entry lead to other bits."""
        new = self._new
        self._give_up(new.table[number])
        if not any(content):
            new.table[number] = 0
            return
        if content == b"\xff" * len(content):
            new.table[number] = BITS_ALL_SET
            return
        cluster, _ = self._metadata.allocator.allocate(1)
        new.taken.append(cluster)
        new.table[number] = cluster << self._header.cluster_bits
        self._file.write_metadata(new.table[number], content)

    def _write_table(self) -> None:
        new, bits, geometry = self._new, self._header.cluster_bits, self._metadata.geometry
        count = geometry.clusters(len(new.table) * 8)
        first = self._metadata.allocator.allocate_contiguous(count)
        new.taken.extend(range(first, first + count))
        content = bigendian.to_bytes(new.table).ljust(count << bits, b"\0")
        old = new.offset >> bits
        new.offset = first << bits
        self._file.write_metadata(new.offset, content)
        new.given_up.extend(range(old, old + geometry.clusters(new.entry.table_size * 8)))


def _publish(metadata: Metadata, tables: list[NewTable]) -> None:
    """Let the directory lead to the new tables; then say that the bitmaps are saved.

    Between offset and length of a table a crash may come: both together must make sense always.
    """
    for write in (_write_first, _write_second, _write_saved):
        wrote = False
        for new in tables:
            wrote |= write(metadata.file, new)
        if wrote:
            metadata.flush()


def _write_first(file: ImageFile, new: NewTable) -> bool:
    return _write_length(file, new) if _shrinks(new) else _write_offset(file, new)


def _write_second(file: ImageFile, new: NewTable) -> bool:
    return _write_offset(file, new) if _shrinks(new) else _write_length(file, new)


def _shrinks(new: NewTable) -> bool:
    return len(new.table) < new.entry.table_size


def _write_offset(file: ImageFile, new: NewTable) -> bool:
    if new.offset == new.entry.table_offset:
        return False
    file.write_metadata(new.entry.place, new.offset.to_bytes(8, "big"))
    return True


def _write_length(file: ImageFile, new: NewTable) -> bool:
    if len(new.table) == new.entry.table_size:
        return False
    file.write_metadata(new.entry.place + 8, len(new.table).to_bytes(4, "big"))
    return True


def _write_saved(file: ImageFile, new: NewTable) -> bool:
    write_flags(file, new.entry, new.entry.flags)
    return True
