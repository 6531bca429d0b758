"""What a write-back brings to the disk, in an order in which a crash leaves at worst lost clusters.

All changes of tables are made in memory. A picture of them goes to the disk in stages, each safe
there (fdatasync) before the next begins:

1. refcounts, which only count up here; the content of new tables, which nothing points to yet; and,
   as they were written by the clients, the data;
2. what makes new refcount blocks valid: refcount table entries, or the header;
3. what points to all that: entries in L2 tables and in the L1 table.

Only then, and when no request under way uses them, is the space of clusters that nothing points to
any more given back to the file system, and are they counted down in memory: that reaches the disk
with stage 1 of the next write-back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs

from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tap_qcow2.tables.metadata import Metadata
from tapcore import ImageFormatError, TapError
from tapcore.clusters import Picture, Write

log = logging.getLogger(__name__)

MOST_LAZY: Final = 64
"""Refcount blocks that may be behind with lazy refcounts."""


@attrs.define
class _Counts:
    """What a picture has of the refcounts.

    Attributes:
        blocks: those that had changed.
        table: blocks of the refcount table that had.
        moved: the refcount table is written whole, to a new place.
        header: gets that place.
    """

    blocks: list[RefcountBlock] = attrs.field(factory=list)
    table: set[int] = attrs.field(factory=set)
    moved: bool = False
    header: bool = False


class Stages:
    """Takes the pictures of one image.

    Args:
        name: of the image, for the log.
        metadata: what is written.
        on_damage: called with what is wrong when damage is found.

    Attributes:
        lazy: refcounts on disk may be behind, and the dirty bit there says so.
        closing: the last write-backs are under way: nothing stays behind.
    """

    def __init__(self, name: str, metadata: Metadata, on_damage: Callable[[str], None]) -> None:
        self._name = name
        self._metadata = metadata
        self._on_damage = on_damage
        self._header_due = False  # the refcount table is at its new place, the header perhaps not
        self.lazy = False
        self.closing = False

    def picture(self) -> Picture:
        """All that has changed in memory since the last one was taken."""
        refcounts = self._metadata.refcounts
        taken = self._metadata.tables.take()
        first, second, last = taken.fresh, list[Write](), taken.changed
        counts = self._take_refcounts(first, second)
        released, refcounts.released = refcounts.released, []
        dropped = self._take_discarded(released)

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 2)
            for block in counts.blocks:
                block.pinned = False
            if failed:
                self._restore(counts, failed)
                refcounts.released[:0] = released
                refcounts.discarded.update(dropped)

        return Picture(
            [first, second, last],
            conclude,
            end=self._metadata.allocator.end,
            holes=self._holes(dropped),
            free=partial(self._count_down, released) if released else None,
        )

    # ---- refcounts --------------------------------------------------------------------------

    def _take_refcounts(self, first: list[Write], second: list[Write]) -> _Counts:
        header, refcounts = self._metadata.header, self._metadata.refcounts
        table = refcounts.directory
        moved = refcounts.table_moved or self._header_due
        if self.lazy and not self.closing and not moved and len(refcounts.dirty) <= MOST_LAZY:
            return _Counts()  # the dirty bit says that they are behind
        counts = _Counts(list(refcounts.dirty), table.dirty, refcounts.table_moved, moved)
        for block in counts.blocks:
            first.append((block.offset, block.serialize()))
            block.dirty, block.pinned = False, True
        refcounts.dirty.clear()
        if counts.moved:
            first.append(table.content())
        else:
            second.extend(table.changes())
        if counts.header:
            second.append((0, header.fields()))
        table.dirty, refcounts.table_moved, self._header_due = set(), False, False
        return counts

    def _restore(self, counts: _Counts, failed: int) -> None:
        """A stage failed: all is to be written again.

        What a stage that had begun points to is on disk, and perhaps pointed to: from now on it is
        changed in the order that holds for such.
        """
        refcounts = self._metadata.refcounts
        for block in counts.blocks:
            refcounts.mark(block)
        refcounts.directory.dirty |= counts.table
        refcounts.table_moved |= counts.moved and failed < 2
        self._header_due |= counts.header and not refcounts.table_moved

    # ---- what was given up ------------------------------------------------------------------

    def _take_discarded(self, released: list[int]) -> list[int]:
        """Those given up whose space goes back to the file system when they are really free."""
        refcounts = self._metadata.refcounts
        if not refcounts.discarded:
            return []
        times = Counter(released)
        wanted = sorted(refcounts.discarded.intersection(times))
        refcounts.discarded.difference_update(times)
        return [cluster for cluster in wanted if self._gets_free(cluster, times[cluster])]

    def _gets_free(self, cluster: int, times: int) -> bool:
        """Whether nothing will refer to a cluster when it is counted down so often."""
        try:
            return self._metadata.refcounts.get(cluster) == times
        except (TapError, OSError):  # counting it down will tell
            return False

    def _holes(self, clusters: list[int]) -> list[tuple[int, int]]:
        size = self._metadata.geometry.cluster_size
        holes: list[tuple[int, int]] = []
        for cluster in clusters:
            if holes and sum(holes[-1]) == cluster * size:
                holes[-1] = (holes[-1][0], holes[-1][1] + size)
            else:
                holes.append((cluster * size, size))
        return holes

    def _count_down(self, released: list[int]) -> None:
        """These can be given out again."""
        refcounts = self._metadata.refcounts
        for cluster in released:
            try:
                refcounts.add(cluster, -1)
            except ImageFormatError as exc:
                self._on_damage(exc.message)
                return
            except OSError as exc:
                log.warning("%s: clusters are leaked: %s", self._name, exc.strerror)
                return
