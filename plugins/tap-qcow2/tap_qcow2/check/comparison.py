"""The refcounts on disk beside the references that were counted, and the COPIED flags beside both.

Source: qcow2.rst, "Host cluster management"; the findings are those of `qemu-img check`. Refcounts
of clusters behind the file's end are nobody's loss before it grows, and not called leaked.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from tap_qcow2.check.referencecounts import Counts, last_used
from tap_qcow2.check.report import Report
from tap_qcow2.check.walk import Walk
from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import block_offset, copied, offset_of
from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tap_qcow2.tables.copiedflags import flagged_runs

if TYPE_CHECKING:
    from tap_qcow2.image import Image


class Comparison:
    """Refcounts and flags of one image, judged by its references.

    Args:
        image: open; its file is read, not what is in memory.
        walk: finished; the references of the refcount structures are added to it.
        report: gets what is found.

    Attributes:
        blocks: offsets (bytes) of the refcount blocks that can be used, by their number; 0: none.
        counted: how often clusters were counted as being of these structures.
        rebuild: the refcount structures are damaged, or lack a block: they are to be made anew.
        too_low: a refcount is less than the references.
        overflow: something is referred to more often than a refcount can say.
        misflagged: COPIED flags are wrong.
        wrong: numbers of the blocks with wrong refcounts.
        stale: numbers of the blocks that count clusters behind the file's end.
        end: the cluster behind the last one that is in use, or counted so.
    """

    def __init__(self, image: Image, walk: Walk, report: Report) -> None:
        self._image = image
        self._walk = walk
        self._report = report
        self._counts = walk.counts
        self._stored: dict[int, Words] = {}
        self._order = image.refcounts.order
        self._per_block_bits = image.refcounts.per_block_bits
        self.blocks = bigendian.zeroes(0)
        self.counted: Counter[int] = Counter()
        self.rebuild = False
        self.too_low = False
        self.overflow = False
        self.misflagged = False
        self.wrong: set[int] = set()
        self.stale: set[int] = set()
        self.end = 0
        self._last: list[tuple[int, bytes]] = []

    # ---- the structures ---------------------------------------------------------------------

    def count_structures(self) -> None:
        """Count and judge the refcount table and its blocks."""
        header, rules = self._image.header, self._walk.rules
        length = header.refcount_table_clusters << header.cluster_bits
        if not length:
            self._report.corrupt("it has no refcount table at a possible place")
            self.rebuild = True
        elif not rules.inside(header.refcount_table_offset, length):
            self._report.corrupt("refcount table lies outside of the file")
            self.rebuild = True
        else:
            first = header.refcount_table_offset >> header.cluster_bits
            count = header.refcount_table_clusters
            self._counts.add(first, count)
            self.counted.update(range(first, first + count))
            self.rebuild = self._counts.ones(first, count) != count
        table = self._image.refcounts.table
        self.blocks = bigendian.zeroes(len(table))
        for number, offset in enumerate(table):
            if offset:
                self._count_block(number, offset)

    def _count_block(self, number: int, entry: int) -> None:
        bits = self._image.cluster_bits
        offset = block_offset(entry)
        if offset & (self._image.geometry.cluster_size - 1):
            problem = "is not at a cluster's boundary"
        elif not self._walk.rules.inside(offset, 1 << bits):
            problem = "lies outside of the file"
        elif offset != entry:
            self.blocks[number] = offset
            problem = "has reserved bits"
        else:
            self.blocks[number] = offset
            self.counted[offset >> bits] += 1
            self._counts.add(offset >> bits, 1)
            times = self._counts.get(offset >> bits)
            if times == 1:
                return
            self.rebuild = True
            if self._image.refcounts.most == 1:
                return  # that is told as an overflow
            problem = f"is referred to {times} times"
        self._report.corrupt(f"refcount block {number} ({entry:#x}) {problem}")
        self.rebuild = True

    # ---- refcounts --------------------------------------------------------------------------

    def compare(self) -> None:
        """Find what is counted wrongly.

        Raises:
            OSError: a block cannot be read.
            GivenUpError: see there.
        """
        limit = max(self._walk.rules.clusters, self._counts.end())
        pages = self._counts.by_block(self._per_block_bits)
        beyond = sorted(number for number in pages if number >= len(self.blocks))
        for number in itertools.chain(range(len(self.blocks)), beyond):
            if number in pages or self.blocks[number]:
                self._compare_block(number, pages.get(number, []), limit)
        self.end = self._end(limit)

    def _compare_block(self, number: int, pages: list[int], limit: int) -> None:
        """A block beside the pages (their numbers) of references to the clusters that it counts."""
        offset = self.blocks[number] if number < len(self.blocks) else 0
        if not offset:
            self.rebuild = True
        if self.counted[offset >> self._image.cluster_bits] > 1:
            self._walk.overlaps(self._image.geometry.cluster_size)
        content = self._walk.read(offset, self._image.geometry.cluster_size) if offset else None
        shift = self._per_block_bits - self._counts.page_bits
        size = self._image.geometry.cluster_size >> shift
        zeroes = bytes(size)
        wanted = set(pages)
        for page in pages if content is None else range(number << shift, (number + 1) << shift):
            at = (page - (number << shift)) * size
            got = zeroes if content is None else content[at : at + size]
            if page << self._counts.page_bits >= limit:
                if got != zeroes:
                    self.stale.add(number)
                continue
            if page in wanted:
                over = self._find_overflow(page)
                if over or got != self._counts.serialize(page, self._order):
                    self._tell_differences(number, page, got, limit)
            elif got != zeroes:
                self._tell_differences(number, page, got, limit)
            else:
                continue
            self._last = [*self._last[-1:], (page, got)]

    def _find_overflow(self, page: int) -> bool:
        counted = self._counts.pages[page]
        most = self._image.refcounts.most
        if isinstance(counted, bytearray) and most >= 255:
            return False
        found = False
        for at, value in enumerate(counted):
            if value > most:
                cluster = (page << self._counts.page_bits) + at
                message = f"cluster {cluster} has {value} references, too many for its refcount"
                self._report.corrupt(message, value - most)
                self.overflow = found = True
        return found

    def _tell_differences(self, number: int, page: int, got: bytes, limit: int) -> None:
        values = RefcountBlock.parse(self._order, 0, got).values
        counted = self._counts.pages.get(page)
        most = self._image.refcounts.most
        base = page << self._counts.page_bits
        for at, refcount in enumerate(values):
            wanted = min(counted[at], most) if counted is not None else 0
            if refcount == wanted:
                continue
            if base + at >= limit:
                self.stale.add(number)
                break
            message = f"cluster {base + at} has a refcount of {refcount}, and {wanted} references"
            if refcount < wanted:
                self._report.corrupt(message)
                self.too_low = True
            else:
                self._report.leaked(message)
            self.wrong.add(number)
        if counted is not None:
            self._stored[page] = values

    def _end(self, limit: int) -> int:
        """In the last page that is not empty; of the one at the limit perhaps all lies behind."""
        for page, got in reversed(self._last):
            base = page << self._counts.page_bits
            values = RefcountBlock.parse(self._order, 0, got).values[: limit - base]
            last = max((at for at, value in enumerate(values) if value), default=-1)
            counted = self._counts.pages.get(page)
            if counted is not None:
                last = max(last, last_used(counted))
            if last >= 0:
                return base + last + 1
        return 0

    # ---- flags ------------------------------------------------------------------------------

    def check_flags(self) -> None:
        """Find COPIED flags of the active tables that contradict the refcounts on disk.

        Raises:
            OSError: a table cannot be read.
        """
        walk = self._walk
        stored = Counts(self._per_block_bits)
        stored.pages = {**self._counts.pages, **self._stored}
        self._check_l1_flags(stored)
        all_single = not self.wrong and stored.all_single()
        for offset, uses in walk.l2_tables.items():
            if not uses.active or not offset:
                continue
            if not (all_single or walk.rules.data_file) or offset in walk.suspicious:
                self._check_l2_flags(offset, uses.active, stored)

    def _check_l1_flags(self, stored: Counts) -> None:
        entries = itertools.chain.from_iterable(self._walk.entries(self._walk.l1_tables[0]))
        for entry in filter(None, entries):
            offset = offset_of(entry)
            refcount = self._refcount(stored, offset >> self._image.cluster_bits)
            if offset and (refcount == 1) != copied(entry):
                message = f"L1 entry {entry:#x} has a wrong COPIED flag: the refcount is {refcount}"
                self._report.corrupt(message)
                self.misflagged = True

    def _check_l2_flags(self, offset: int, times: int, stored: Counts) -> None:
        content = self._walk.read(offset, self._image.geometry.cluster_size)
        if content is None:
            return
        wrong = 0
        for first, count, flag in flagged_runs(self._walk.rules, bigendian.from_bytes(content)):
            if self._walk.rules.data_file:
                single = count
            elif first + count <= self._walk.rules.clusters:
                single = stored.ones(first, count)
            else:
                single = sum(self._refcount(stored, first + n) == 1 for n in range(count))
            wrong += count - single if flag else single
        if wrong:
            message = f"{wrong} entries of the L2 table at {offset:#x} have a wrong COPIED flag"
            self._report.corrupt(message, wrong * times)
            self.misflagged = True

    def _refcount(self, stored: Counts, cluster: int) -> int:
        """What is on disk, also for a cluster that nothing can refer to."""
        if cluster >> stored.page_bits in stored.pages:
            return stored.get(cluster)
        number = cluster >> self._per_block_bits
        if number >= len(self.blocks) or not self.blocks[number]:
            return 0
        size = self._image.geometry.cluster_size
        content = self._walk.read(self.blocks[number], size) or bytes(size)
        block = RefcountBlock.parse(self._order, 0, content)
        return block.values[cluster & ((1 << self._per_block_bits) - 1)]
