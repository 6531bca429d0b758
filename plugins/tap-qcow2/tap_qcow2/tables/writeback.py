"""Writing metadata back in an order in which a crash leaves at worst leaked clusters.

All changes of tables are made in memory. A write-back takes a picture of them and brings it to the
disk in stages, each safe on disk (fdatasync) before the next begins:

1. refcounts, which only count up here; the content of new tables, which nothing points to yet; and,
   as they were written by the clients, the data;
2. what makes new refcount blocks valid: refcount table entries, or the header;
3. what points to all that: entries in L2 tables and in the L1 table.

Only then, and when no request under way uses them, is the space of clusters that nothing points to
any more given back to the file system, and are they counted down in memory: that reaches the disk
with stage 1 of the next write-back. What changes while one runs is not in its picture, so nothing
is published before its data is safe.

The stages of one write-back run in a thread, and only one runs at a time.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Callable
from os import strerror
from typing import Final

import attrs

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tap_qcow2.tables.inflight import InFlight
from tap_qcow2.tables.l2tables import BLOCK_SHIFT, L1_BLOCK_SHIFT, Table
from tap_qcow2.tables.metadata import Metadata
from tapcore import ImageFile, ImageFormatError, TapError, Then

log = logging.getLogger(__name__)

MOST_RELEASED: Final = 65536
"""Clusters given up that wait to be counted down; beyond it a write-back begins by itself."""

MOST_LAZY: Final = 64
"""Refcount blocks that may be behind with lazy refcounts."""

Write = tuple[int, bytes]
"""Offset in the image file (bytes), and content."""


@attrs.define
class Picture:
    """What one write-back brings to the disk, and what it was taken from.

    Attributes:
        end: the file must be at least so long, bytes.
        stages: the writes of each stage.
        tables: L2 tables, with the blocks of them that were dirty.
        fresh: those of them that were new.
        blocks: refcount blocks.
        l1: sectors of the L1 table.
        table_sectors: sectors of the refcount table.
        table_moved: the refcount table is written whole, to a new place.
        header: gets the refcount table's place.
        released: clusters to be counted down at the end.
        holes: ranges (offset, length) that are given back to the file system.
        failed: -errno of what failed before the stages.
        lost: -errno with which an fdatasync failed.
        reached: the last stage that has begun, from 1: something of it may be on disk.
    """

    end: int = 0
    stages: tuple[list[Write], list[Write], list[Write]] = attrs.field(factory=lambda: ([], [], []))
    tables: list[tuple[Table, set[int]]] = attrs.field(factory=list)
    fresh: list[Table] = attrs.field(factory=list)
    blocks: list[RefcountBlock] = attrs.field(factory=list)
    l1: set[int] = attrs.field(factory=set)
    table_sectors: set[int] = attrs.field(factory=set)
    table_moved: bool = False
    header: bool = False
    released: list[int] = attrs.field(factory=list)
    holes: list[tuple[int, int]] = attrs.field(factory=list)
    failed: int = 0
    lost: int = 0
    reached: int = 1


class Writeback:
    """The write-backs of one image.

    Args:
        name: of the image, for the log.
        metadata: what is written.
        in_flight: requests under way, which may use what is given up.
        flush_data: makes content safe that lies in another file, in a thread; 0 or -errno.
        on_damage: called with what is wrong when damage is found.

    Attributes:
        running: one is under way.
        failing: -errno of the last one; 0: it succeeded.
        lazy: refcounts on disk may be behind, and the dirty bit there says so.
        closing: the last ones are under way: nothing stays behind.
    """

    def __init__(
        self,
        name: str,
        metadata: Metadata,
        in_flight: InFlight,
        flush_data: Callable[[], int],
        on_damage: Callable[[str], None],
    ) -> None:
        self._name = name
        self._metadata = metadata
        self._file = metadata.file
        self._in_flight = in_flight
        self._flush_data = flush_data
        self._on_damage = on_damage
        self._waiting: list[Then] = []
        self._waits = False  # for the disk: nothing is done in threads
        self._punching = 0  # holes, in threads
        self._untold = 0
        self._header_due = False  # the refcount table is at its new place, the header perhaps not
        self.running = False
        self.failing = 0
        self.lazy = False
        self.closing = False

    # ---- asking for one ---------------------------------------------------------------------

    def flush(self, then: Then) -> int:
        """Make all that is in the tables now safe, and then call `then(0 or -errno)`."""
        self._waiting.append(then)
        if not self.running:
            self._begin()
        return 0

    def when_needed(self) -> None:
        """Begin one if so much waits that memory would not stay bounded."""
        if self.needed and not self.running:
            self._begin()

    @property
    def needed(self) -> bool:
        """So much waits that memory would not stay bounded."""
        metadata = self._metadata
        return metadata.tables.overfull or len(metadata.refcounts.released) > MOST_RELEASED

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        picture = self._take_picture()
        self.running = True
        try:
            self._file.truncate_up(picture.end)  # here: nothing is given out meanwhile
        except OSError as exc:
            # no warning: whoever waits for the flush is told
            log.info("%s: the image file cannot grow: %s", self._name, exc.strerror)
            picture.failed = -(exc.errno or errno.EIO)

        def finished(res: int) -> int:
            self.running = False
            self._conclude(picture, res)
            if waiting:
                untold = self.failure_to_tell()
                res = res or untold
            else:
                self._untold = picture.lost or self._untold
            done = sum(then(res) for then in waiting)
            if self._waiting and not self.running:
                self._begin()
            return done

        self._file.queue_work(lambda: self._perform(picture), finished)

    def failure_to_tell(self) -> int:
        """-errno of an fdatasync that failed when nobody waited for it, once; 0: there is none.

        The kernel tells only once that data may be lost, and whoever flushes next must hear of it.
        """
        untold, self._untold = self._untold, 0
        return untold

    def all_now(self) -> None:
        """Bring everything to the disk and wait for it; no request may be under way.

        Raises:
            OSError: as the system says.
        """
        while self.running or self._punching:  # what began by itself
            self._file.drain()
        self._waits = True
        try:
            self._until_clean()
        finally:
            self._waits = False

    def _until_clean(self) -> None:
        while True:
            picture = self._take_picture()
            try:
                self._file.truncate_up(picture.end)
                res = self._perform(picture)
            except OSError as exc:
                res = -(exc.errno or errno.EIO)
            self._conclude(picture, res)
            if res:
                raise OSError(-res, "writing the image's tables failed")
            if not (picture.released or any(picture.stages)):
                return

    # ---- the picture ------------------------------------------------------------------------

    def _take_picture(self) -> Picture:
        picture = Picture(end=self._metadata.allocator.end)
        self._picture_tables(picture)
        self._picture_refcounts(picture)
        self._picture_released(picture)
        return picture

    def _picture_tables(self, picture: Picture) -> None:
        tables = self._metadata.tables
        before, _, last = picture.stages
        for table in tables.dirty:
            if table.fresh:
                before.append((table.offset, bigendian.to_bytes(table.entries)))
                picture.fresh.append(table)
                table.fresh = False
            else:
                last.extend(_blocks(table.entries, table.dirty, BLOCK_SHIFT, table.offset))
            picture.tables.append((table, table.dirty))
            table.dirty = set()
            table.pinned = True
        tables.dirty.clear()
        last.extend(_blocks(tables.l1, tables.l1_dirty, L1_BLOCK_SHIFT, tables.l1_offset))
        picture.l1, tables.l1_dirty = tables.l1_dirty, set()

    def _picture_refcounts(self, picture: Picture) -> None:
        header, refcounts = self._metadata.header, self._metadata.refcounts
        moved = refcounts.table_moved or self._header_due
        if self.lazy and not self.closing and not moved and len(refcounts.dirty) <= MOST_LAZY:
            return  # the dirty bit says that they are behind
        first, second, _ = picture.stages
        for block in refcounts.dirty:
            first.append((block.offset, block.serialize()))
            picture.blocks.append(block)
            block.dirty, block.pinned = False, True
        refcounts.dirty.clear()
        offset = header.refcount_table_offset
        picture.table_moved, refcounts.table_moved = refcounts.table_moved, False
        picture.header, self._header_due = picture.table_moved or self._header_due, False
        if picture.table_moved:
            first.append((offset, bigendian.to_bytes(refcounts.table)))
        else:
            second.extend(_blocks(refcounts.table, refcounts.table_dirty, 6, offset))
        if picture.header:
            second.append((0, header.fields()))
        picture.table_sectors, refcounts.table_dirty = refcounts.table_dirty, set()

    def _picture_released(self, picture: Picture) -> None:
        """What is given up; of that, what goes back to the file system when it is really free."""
        refcounts = self._metadata.refcounts
        picture.released, refcounts.released = refcounts.released, []
        if not refcounts.discarded:
            return
        size = self._metadata.geometry.cluster_size
        times = Counter(picture.released)
        for cluster in sorted(refcounts.discarded.intersection(times)):
            if not self._gets_free(cluster, times[cluster]):
                continue
            if picture.holes and sum(picture.holes[-1]) == cluster * size:
                picture.holes[-1] = (picture.holes[-1][0], picture.holes[-1][1] + size)
            else:
                picture.holes.append((cluster * size, size))
        refcounts.discarded.difference_update(times)

    def _gets_free(self, cluster: int, times: int) -> bool:
        """Whether nothing will refer to a cluster when it is counted down so often."""
        try:
            return self._metadata.refcounts.get(cluster) == times
        except (TapError, OSError):  # counting it down will tell
            return False

    # ---- to the disk ------------------------------------------------------------------------

    def _perform(self, picture: Picture) -> int:
        """In a thread. Returns 0 or -errno, or raises OSError."""
        if picture.failed:
            return picture.failed
        file = self._file
        before, between, last = picture.stages
        _write(file, before)
        picture.lost = self._flush_data()
        if not picture.lost and (not self._metadata.decoder.elsewhere or any(picture.stages)):
            picture.lost = file.flush_blocking()
        for number, stage in ((2, between), (3, last)):
            if stage and not picture.lost:
                picture.reached = number
                _write(file, stage)
                picture.lost = file.flush_blocking()
        return picture.lost

    def _punch(self, holes: list[tuple[int, int]]) -> int:
        """Give ranges back to the file system, perhaps in a thread."""
        for offset, length in holes:
            if res := self._file.discard_blocking(offset, length):
                log.warning("%s: space is not given back: %s", self._name, strerror(-res))
                return res
        return 0

    def _conclude(self, picture: Picture, res: int) -> None:
        self.failing = res
        for table, _ in picture.tables:
            table.pinned = False
        for block in picture.blocks:
            block.pinned = False
        if res:
            self._restore(picture)
            return
        if picture.released:
            self._in_flight.barrier(lambda: self._free(picture))

    def _free(self, picture: Picture) -> None:
        """Nothing points to what was released any more, on disk or in a request under way.

        Not even a read does: of an encrypted cluster it would decrypt the zeroes of a hole.
        """

        def punched(res: int) -> int:
            self._punching -= 1
            self._count_down(picture.released)
            return 0

        if not picture.holes:
            self._count_down(picture.released)
        elif self._waits:
            self._punch(picture.holes)
            self._count_down(picture.released)
        else:
            self._punching += 1
            self._file.queue_work(lambda: self._punch(picture.holes), punched)

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

    def _restore(self, picture: Picture) -> None:
        """It failed: everything in the picture is to be written again.

        What a stage that had begun points to is on disk, and perhaps pointed to: from now on it is
        changed in the order that holds for such.
        """
        tables, refcounts = self._metadata.tables, self._metadata.refcounts
        for table, dirty in picture.tables:
            table.dirty |= dirty
            tables.dirty.add(table)
        for table in picture.fresh:
            table.fresh = picture.reached < 3
        tables.l1_dirty |= picture.l1
        for block in picture.blocks:
            block.dirty = True
            refcounts.dirty.add(block)
        refcounts.table_dirty |= picture.table_sectors
        refcounts.table_moved |= picture.table_moved and picture.reached < 2
        self._header_due |= picture.header and not refcounts.table_moved
        refcounts.released[:0] = picture.released
        bits = self._metadata.geometry.cluster_bits
        for offset, length in picture.holes:
            refcounts.discarded.update(range(offset >> bits, (offset + length) >> bits))


def _blocks(content: bigendian.Words, dirty: set[int], shift: int, offset: int) -> list[Write]:
    """The dirty blocks of a table that lies at an offset (bytes); neighbours in one write."""
    writes: list[Write] = []
    size = 1 << shift
    last = -2
    for number in sorted(dirty):
        part = bigendian.to_bytes(content[number * size : (number + 1) * size])
        if number == last + 1:
            start, before = writes[-1]
            writes[-1] = (start, before + part)
        else:
            writes.append((offset + number * size * 8, part))
        last = number
    return writes


def _write(file: ImageFile, writes: list[Write]) -> None:
    for offset, content in writes:
        file.write_metadata(offset, content)
