"""Repairing L1 and L2 tables: each step leaves the image no worse than it was.

What must not be written where it is (a table on top of something else) is copied elsewhere first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from tap_qcow2.check.rebuild import FreeSpace
from tap_qcow2.check.referencecounts import Counts
from tap_qcow2.check.walk import L1Table, Walk
from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import copied, l1_entry, moved, offset_of
from tap_qcow2.ondisk.verdicts import judge
from tap_qcow2.tables.copiedflags import flagged_runs, write_changed

if TYPE_CHECKING:
    from tap_qcow2.image import Image


@attrs.define
class Moves:
    """What goes elsewhere, because it lies on top of something else.

    Attributes:
        data: cluster number of data: the new one.
        tables: cluster number of an L2 table: the new one.
        packed: L2 entry of a compressed cluster: the new one.
        twins: offset of an L2 table: which of its words lead to data that another entry of the disk
            leads to as well, and the cluster that each gets.
    """

    data: dict[int, int] = attrs.field(factory=dict)
    tables: dict[int, int] = attrs.field(factory=dict)
    packed: dict[int, int] = attrs.field(factory=dict)
    twins: dict[int, dict[int, int]] = attrs.field(factory=dict)


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
        self._flush = image.metadata.flush
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
                self._moves.data[cluster] = self._copy(cluster, 1, references)
            if cluster in tables and walk.structures.get(cluster):
                self._moves.tables[cluster] = self._copy(cluster, 1, tables[cluster])
        if self._moves.data:
            for offset, uses in sorted(walk.l2_tables.items()):
                self._copy_compressed(offset, uses.times)
        if walk.crowded:
            self._flush()

    def _copy(self, cluster: int, count: int, references: int) -> int:
        new = self._space.find(count)
        self._walk.counts.add(new, count, references)
        content = self._file.read_metadata(cluster << self._bits, self._size * count)
        self._file.write_metadata(new << self._bits, content)
        return new

    def _copy_compressed(self, offset: int, times: int) -> None:
        """Of a table, the compressed clusters that lie on what has to be copied."""
        decoder, moves = self._walk.rules.decoder, self._moves
        content = self._walk.read(offset, self._size)
        if content is None:
            return
        for entry in bigendian.from_bytes(content)[:: self._step]:
            if not decoder.packed(entry):
                continue
            start, length = decoder.compressed_range(entry)
            first = start >> self._bits
            count = ((start + length - 1) >> self._bits) - first + 1
            if moves.data.keys().isdisjoint(range(first, first + count)):
                continue
            if entry in moves.packed:
                there, _ = decoder.compressed_range(moves.packed[entry])
                self._walk.counts.add(there >> self._bits, count, times)
            elif self._walk.rules.inside(start, length):
                new = self._copy(first, count, times)
                moves.packed[entry] = entry + ((new - first) << self._bits)

    def part_twins(self) -> None:
        """Copy data that several entries of the disk lead to, for all of them but the first.

        Entries of an L2 table that the disk has twice go on to share their data.

        Raises:
            OSError: as the system says.
        """
        walk = self._walk
        if walk.rules.data_file:
            return
        seen = Counts(walk.counts.page_bits)
        for offset, uses in sorted(walk.l2_tables.items()):
            content = self._walk.read(offset, self._size) if uses.active == 1 else None
            if content is None or offset & (self._size - 1):
                continue
            entries = bigendian.from_bytes(content)
            for first, count, _ in flagged_runs(walk.rules, entries):
                if walk.counts.ones(first, count) != count:
                    self._part_twins_of(offset, uses.times, entries, seen)
                    break
        if self._moves.twins:
            self._flush()

    def _part_twins_of(self, offset: int, times: int, entries: Words, seen: Counts) -> None:
        for at in range(0, len(entries), self._step):
            extended = self._step == 2
            found = judge(self._walk.rules, entries[at], entries[at + 1] if extended else 0)
            cluster = found.offset >> self._bits
            if not found.flagged or found.lost or self._walk.counts.get(cluster) < 2:
                continue
            if seen.get(cluster):
                new = self._copy(cluster, 1, times)
                self._moves.twins.setdefault(offset, {})[at] = new
            seen.add(cluster, 1)

    def correct(self) -> None:
        """Write the tables as they should be; all that they may lead to is counted on disk.

        Raises:
            OSError: as the system says.
        """
        walk = self._walk
        some = walk.l2_damaged.union(self._moves.twins)
        for offset in sorted(walk.l2_tables if self._moves.data else some):
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
        entries = bigendian.from_bytes(content)
        for at in range(0, len(entries), self._step):
            if entries[at] > 1 or (self._step == 2 and (entries[at] or entries[at + 1])):
                self._correct_entry(entries, at)
        for at, new in self._moves.twins.get(offset, {}).items():
            entries[at] = moved(entries[at], new << self._bits)
        place = self._moves.tables.get(cluster, cluster)
        if place == cluster and self._walk.structures.get(cluster):
            return
        write_changed(self._file, place << self._bits, content, bigendian.to_bytes(entries))

    def _correct_entry(self, entries: Words, at: int) -> None:
        extended = self._step == 2
        found = judge(self._walk.rules, entries[at], entries[at + 1] if extended else 0)
        self.lost += found.lost
        cluster = offset_of(found.entry) >> self._bits
        if found.flagged and not found.lost and cluster in self._moves.data:
            found.entry = moved(found.entry, self._moves.data[cluster] << self._bits)
        entries[at] = self._moves.packed.get(found.entry, found.entry)
        if extended:
            entries[at + 1] = found.bitmap

    def _correct_l1(self, table: L1Table) -> None:
        if not self._walk.l1_damaged and not self._moves.tables:
            return
        if not self._is_alone(table):
            return
        for offset, content in bigendian.parts(self._file, table.offset, table.size):
            entries = bigendian.from_bytes(content)
            for index, entry in enumerate(entries):
                if entry:
                    entries[index] = self._l1_entry(entry)
            write_changed(self._file, offset, content, bigendian.to_bytes(entries))

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
        offset = offset_of(entry)
        if (
            not offset
            or offset & (self._size - 1)
            or not self._walk.rules.inside(offset, self._size)
        ):
            self.lost += 1
            return 0
        cluster = offset >> self._bits
        place = self._moves.tables.get(cluster, cluster)
        return l1_entry(place << self._bits, single=copied(entry))
