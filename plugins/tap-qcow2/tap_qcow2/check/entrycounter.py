"""What the entries of L2 tables refer to, a table at a time.

The many that are plain data are joined to runs; what is odd about an entry is judged one by one.
"""

from __future__ import annotations

from typing import Final

import attrs

from tap_qcow2.check.referencecounts import Counts
from tap_qcow2.check.report import Report
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import copied, offset_of, runs
from tap_qcow2.ondisk.verdicts import Rules, judge

_MOST_DANGLING: Final = 4096


@attrs.define
class L2Uses:
    """How often an L2 table is referred to, by all L1 tables and by the active one."""

    times: int = 0
    active: int = 0


class EntryCounter:
    """Counts the references of L2 tables.

    Args:
        rules: of the image.
        counts: references, by host cluster.
        report: gets what is found.

    Attributes:
        damaged: offsets of the tables of which an entry should be another.
        suspicious: offsets of active tables of which not every entry is flagged as COPIED, or that
            are damaged.
        missing: clusters whose content is lost because the file ends before.
        dangling: clusters behind the file's end that entries lead to which stay as they are; of
            a bounded number.
    """

    def __init__(self, rules: Rules, counts: Counts, report: Report) -> None:
        self._rules = rules
        self._decoder = rules.decoder
        self._counts = counts
        self._report = report
        self._bits = rules.geometry.cluster_bits
        self._size = rules.geometry.cluster_size
        self.damaged: set[int] = set()
        self.suspicious: set[int] = set()
        self.missing = 0
        self.dangling: list[int] = []

    def count(self, offset: int, entries: Words, uses: L2Uses) -> None:
        """Count what a table refers to, as often as it is used.

        Args:
            offset: of the table, bytes.
            entries: its words.
            uses: of it.
        """
        if self._rules.geometry.extended:
            live = self._extended_entries(offset, entries, uses)
        else:
            live = self._decoder.live(entries)
        rules, decoder = self._rules, self._decoder
        all_copied, allocated = True, 0
        single: list[int] = []
        packed: list[int] = []
        for entry, count in runs(live, self._size):
            first = decoder.sound_cluster(entry)
            if not first and decoder.packed(entry):
                packed.extend(range(entry, entry + count * self._size, self._size))
                continue
            if not first or rules.missing(first, count):
                for number in range(count):
                    self._closer(offset, entry + number * self._size, 0, uses)
                continue
            all_copied = all_copied and copied(entry)
            allocated += count
            if count == 1:
                single.append(first)
            elif not rules.data_file:
                self._counts.add(first, count, uses.times)
        if not rules.data_file:
            self._counts.add_each(single, uses.times)
        self._compressed(offset, packed, uses)
        self._report.result.allocated_clusters += allocated * uses.active
        if uses.active and not all_copied:
            self.suspicious.add(offset)

    def _extended_entries(self, offset: int, entries: Words, uses: L2Uses) -> list[int]:
        """Those of which nothing else than place and flags is of interest."""
        live, closely = self._decoder.extended(entries)
        for entry, bitmap in closely:
            self._closer(offset, entry, bitmap, uses)
        return live

    def _closer(self, offset: int, entry: int, bitmap: int, uses: L2Uses) -> None:
        """An entry that is not just plain data in its place."""
        found = judge(self._rules, entry, bitmap)
        self.missing += found.missing * uses.times
        if found.problems:
            self.damaged.add(offset)
            self.suspicious.add(offset)
            shown = f"{entry:#x}, {bitmap:#x}" if self._rules.geometry.extended else f"{entry:#x}"
            for problem in found.problems:
                message = f"entry {shown} of the L2 table at {offset:#x} {problem}"
                self._report.corrupt(message, uses.times)
        dangles = found.problems and not (found.length or found.lost or self._rules.data_file)
        if dangles and len(self.dangling) < _MOST_DANGLING:
            self.dangling.append(offset_of(entry) >> self._bits)
        if found.length:
            first = found.offset >> self._bits
            last = (found.offset + found.length - 1) >> self._bits
            self._counts.add(first, last - first + 1, uses.times)
        if found.flagged and uses.active and not copied(found.entry):
            self.suspicious.add(offset)
        self._report.result.allocated_clusters += found.allocated * uses.active
        self._report.result.compressed_clusters += found.compressed * uses.active

    def _compressed(self, table: int, entries: list[int], uses: L2Uses) -> None:
        """Entries of compressed clusters, without a COPIED flag or a bitmap: the quick way."""
        rules = self._rules
        limit = -1 if rules.data_file else rules.file_size + self._size
        clusters, others = self._decoder.packed_clusters(entries, limit)
        for entry in others:
            self._closer(table, entry, 0, uses)
        sound = len(entries) - len(others)
        self._counts.add_each(clusters, uses.times)
        self._report.result.allocated_clusters += sound * uses.active
        self._report.result.compressed_clusters += sound * uses.active
