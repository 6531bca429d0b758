"""The steps of a repair: each leaves the image no worse than it was, whenever it is interrupted.

Refcounts go up before anything that they count is pointed to, and down at the very end. What must
not be written where it is (a table that lies on top of something else) is copied elsewhere first.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Literal

import attrs

from tap_qcow2 import layout, words
from tap_qcow2.checking_counts import Counts
from tap_qcow2.checking_entries import Rules, judge
from tap_qcow2.checking_refcounts import flagged_runs
from tap_qcow2.checking_walk import L1Table, Walk
from tap_qcow2.rebuilding import FreeSpace
from tap_qcow2.refcountblock import RefcountBlock
from tap_qcow2.refcounts import Refcounts
from tap_qcow2.words import Words

if TYPE_CHECKING:
    from tap_qcow2.checking import Analysis
    from tap_qcow2.image import Image
    from tapcore import ImageFile

_PIECE: Final = 512
"""Changed tables are written by the sector, so that no entry is ever torn."""

Way = Literal["up", "down", "exact"]


def reload_tables(image: Image) -> None:
    """Read anew what is in memory of L1 table and refcounts: they were changed on disk."""
    header, file = image.header, image.file
    image.tables.forget()
    image.tables.l1 = words.from_bytes(
        file.read_metadata(header.l1_table_offset, header.l1_size * 8)
    )
    reftable = header.refcount_table_clusters << header.cluster_bits
    table = words.from_bytes(file.read_metadata(header.refcount_table_offset, reftable))
    image.refcounts = Refcounts(file, header, table)


# ---- refcounts -------------------------------------------------------------------------------


def write_refcounts(image: Image, analysis: Analysis, way: Way) -> None:
    """Change refcounts in place that are not what was counted, and wait for the disk.

    Args:
        image: open for writing.
        analysis: of it.
        way: only those that have to go "up", or "down"; "exact": all.

    Raises:
        OSError: as the system says.
    """
    counts, comparison = analysis.walk.counts, analysis.comparison
    refcounts = image.refcounts
    pages = counts.by_block(refcounts.per_block_bits)
    for number in sorted(comparison.wrong):
        offset = comparison.blocks[number] if number < len(comparison.blocks) else 0
        if not offset or counts.get(offset >> image.cluster_bits) != 1:
            continue
        content = image.file.read_metadata(offset, image.geometry.cluster_size)
        block = RefcountBlock.parse(refcounts.order, offset, content)
        right = counts.block(
            number, refcounts.per_block_bits, refcounts.order, pages.get(number, [])
        )
        if way != "exact":
            wanted = RefcountBlock.parse(refcounts.order, offset, right).values
            choose = max if way == "up" else min
            block.values = array(block.values.typecode, map(choose, block.values, wanted))
            right = block.serialize()
        _write_changed(image.file, offset, content, right)
    image.flush_file()


def _write_changed(file: ImageFile, offset: int, old: bytes, new: bytes) -> bool:
    """Write the sectors of a table that differ, neighbours together; whether there were any."""
    at, length = 0, len(new)
    found = False
    while at < length:
        if old[at : at + _PIECE] == new[at : at + _PIECE]:
            at += _PIECE
            continue
        start = at
        while at < length and old[at : at + _PIECE] != new[at : at + _PIECE]:
            at += _PIECE
        file.write_metadata(offset + start, new[start:at])
        found = True
    return found


# ---- flags -----------------------------------------------------------------------------------


def write_flags(image: Image, walk: Walk) -> None:
    """Set the COPIED flags of the active tables as the references demand, and wait for the disk.

    Raises:
        OSError: as the system says.
    """
    counts, rules = walk.counts, walk.rules
    l1 = walk.l1_tables[0]
    content = image.file.read_metadata(l1.offset, l1.size * 8)
    entries = words.from_bytes(content)
    for index, entry in enumerate(entries):
        cluster = (entry & layout.OFFSET_MASK) >> image.cluster_bits
        if cluster:
            entries[index] = flagged(entry, counts.get(cluster) == 1)
    _write_changed(image.file, l1.offset, content, words.to_bytes(entries))
    for offset, uses in sorted(walk.l2_tables.items()):
        if not uses.active or offset & (image.geometry.cluster_size - 1):
            continue
        content = walk.read(offset, image.geometry.cluster_size) or b""
        entries = words.from_bytes(content)
        if _flags_fit(rules, counts, entries):
            continue
        _set_flags(rules, counts, entries)
        _write_changed(image.file, offset, content, words.to_bytes(entries))
    image.flush_file()


def flagged(entry: int, single: bool) -> int:
    """An entry with its COPIED flag as it should be."""
    return entry | layout.COPIED if single else entry & ~layout.COPIED


def _flags_fit(rules: Rules, counts: Counts, entries: Words) -> bool:
    for first, count, copied in flagged_runs(rules, entries):
        single = count if rules.data_file else counts.ones(first, count)
        if single != (count if copied else 0):
            return False
    return True


def _set_flags(rules: Rules, counts: Counts, entries: Words) -> None:
    bits, step = rules.geometry.cluster_bits, rules.geometry.words
    for at in range(0, len(entries), step):
        entry = entries[at]
        if entry > 1 and judge(rules, entry, entries[at + 1] if step == 2 else 0).flagged:
            cluster = (entry & layout.OFFSET_MASK) >> bits
            entries[at] = flagged(entry, rules.data_file or counts.get(cluster) == 1)


# ---- tables ----------------------------------------------------------------------------------


@attrs.define
class Moves:
    """What goes elsewhere, because it lies on top of something else.

    Attributes:
        data: cluster number of data: the new one.
        tables: cluster number of an L2 table: the new one.
    """

    data: dict[int, int] = attrs.field(factory=dict)
    tables: dict[int, int] = attrs.field(factory=dict)


class TableRepair:
    """Corrects impossible entries of L1 and L2 tables, and parts what lies on top of each other.

    Args:
        image: open for writing.
        walk: through it, finished; what is taken for copies is added to its counts.
        space: for copies.

    Attributes:
        lost: entries that led nowhere, and were made to read as zeroes.
    """

    def __init__(self, image: Image, walk: Walk, space: FreeSpace) -> None:
        self._file = image.file
        self._flush = image.flush_file
        self._size = image.geometry.cluster_size
        self._bits = image.cluster_bits
        self._step = image.geometry.words
        self._walk = walk
        self._space = space
        self._moves = Moves()
        self.lost = 0

    def make_copies(self) -> None:
        """Copy what has to move, into clusters that nothing points to yet.

        Raises:
            OSError: as the system says.
        """
        walk = self._walk
        tables = {offset >> self._bits: uses.times for offset, uses in walk.l2_tables.items()}
        for cluster, references in sorted(walk.crowded.items()):
            if references:
                self._moves.data[cluster] = self._copy(cluster, references)
            if cluster in tables and walk.structures.get(cluster):
                self._moves.tables[cluster] = self._copy(cluster, tables[cluster])
        if walk.crowded:
            self._flush()

    def _copy(self, cluster: int, references: int) -> int:
        new = self._space.find(1)
        self._walk.counts.add(new, 1, references)
        content = self._file.read_metadata(cluster << self._bits, self._size)
        self._file.write_metadata(new << self._bits, content)
        return new

    def correct(self) -> None:
        """Write the tables as they should be; all that they may lead to is counted on disk.

        Raises:
            OSError: as the system says.
        """
        walk = self._walk
        for offset in sorted(walk.l2_tables if self._moves.data else walk.l2_damaged):
            if not offset & (self._size - 1):
                self._correct_l2(offset)
        self._flush()
        for table in walk.l1_tables:
            self._correct_l1(table)
        self._flush()

    def _correct_l2(self, offset: int) -> None:
        cluster = offset >> self._bits
        content = self._walk.read(offset, self._size)
        if content is None:
            return
        entries = words.from_bytes(content)
        for at in range(0, len(entries), self._step):
            if entries[at] > 1 or (self._step == 2 and (entries[at] or entries[at + 1])):
                self._correct_entry(entries, at)
        place = self._moves.tables.get(cluster, cluster)
        if place == cluster and self._walk.structures.get(cluster):
            return
        _write_changed(self._file, place << self._bits, content, words.to_bytes(entries))

    def _correct_entry(self, entries: Words, at: int) -> None:
        extended = self._step == 2
        found = judge(self._walk.rules, entries[at], entries[at + 1] if extended else 0)
        self.lost += found.lost
        host = found.entry & layout.OFFSET_MASK
        if found.flagged and not found.lost and host >> self._bits in self._moves.data:
            host = self._moves.data[host >> self._bits] << self._bits
            found.entry = found.entry & ~layout.OFFSET_MASK | host
        entries[at] = found.entry
        if extended:
            entries[at + 1] = found.bitmap

    def _correct_l1(self, table: L1Table) -> None:
        if not self._walk.l1_damaged and not self._moves.tables:
            return
        if not self._is_alone(table):
            return
        content = self._file.read_metadata(table.offset, table.size * 8)
        entries = words.from_bytes(content)
        for index, entry in enumerate(entries):
            if entry:
                entries[index] = self._l1_entry(entry)
        _write_changed(self._file, table.offset, content, words.to_bytes(entries))

    def _is_alone(self, table: L1Table) -> bool:
        """It is there, and no other structure is: data and L2 tables have moved."""
        length = table.size * 8
        if not length or not self._walk.rules.inside(table.offset, length):
            return False
        first = table.offset >> self._bits
        last = (table.offset + length - 1) >> self._bits
        structures = self._walk.structures
        return all(structures.get(each) == table.times for each in range(first, last + 1))

    def _l1_entry(self, entry: int) -> int:
        offset = entry & layout.OFFSET_MASK
        if (
            not offset
            or offset & (self._size - 1)
            or not self._walk.rules.inside(offset, self._size)
        ):
            self.lost += 1
            return 0
        cluster = offset >> self._bits
        moved = self._moves.tables.get(cluster, cluster) << self._bits
        return (entry & layout.COPIED) | moved
