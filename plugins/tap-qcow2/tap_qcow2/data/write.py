"""Writes: in place where the cluster is the disk's own, else into new clusters, copying on write.

A cluster that is being allocated is `busy`: what else wants to change it waits until it is linked.
New clusters are linked when their data has been written; see `tables.writeback` for what follows.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from tap_qcow2.data.copyonwrite import Fill, shows_zeroes
from tap_qcow2.ondisk import layout
from tap_qcow2.tables.links import check_for_writing, link, link_subclusters
from tapcore import SECTOR_SHIFT, ImageFormatError, TapError, content_damaged

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tap_qcow2.tables.l2tables import Table
    from tapcore import DiskDriver, TdCallback


class Write:
    """A write, or the rest of one that had to wait.

    Args:
        image: open for writing, prepared for it.
        dd: as the hook's.
        cb: as the hook's.
        id: as the hook's.
        prv: as the hook's.
    """

    __slots__ = ("_answer", "_cb", "_dd", "_id", "_image", "_prv")

    def __init__(self, image: Image, dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> None:
        self._image = image
        self._dd = dd
        self._cb = cb
        self._id = id
        self._prv = prv

    def run(self, sector: int, buf: memoryview) -> int:
        """Write `buf` from a sector on; returns how many requests were completed."""
        image = self._image
        finished = 0
        end = sector + (len(buf) >> SECTOR_SHIFT)
        first = sector
        while sector < end:
            index = sector >> image.table_shift
            stop = min(end, (index + 1) << image.table_shift)
            part = buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]
            finished += self._in_table(index, sector, part)
            sector = stop
        return finished

    def _done(self, res: int, sector: int, nb_sectors: int) -> int:
        return self._cb(self._dd, res, sector, nb_sectors, self._id, self._prv)

    def _failed(self, exc: TapError | OSError, sector: int, nb_sectors: int) -> int:
        res = -(exc.errno or errno.EIO)
        if isinstance(exc, ImageFormatError):
            res = content_damaged(self._dd, sector, nb_sectors, exc.message)
            self._image.mark_corrupt(exc.message, told=True)
        return self._done(res, sector, nb_sectors)

    def _in_table(self, index: int, sector: int, buf: memoryview) -> int:
        """The part that one L2 table maps, piece by piece.

        Each answer may lead to other writes before it returns, so each piece looks anew.
        """
        image, tables = self._image, self._image.tables
        finished = 0
        first, end = sector, sector + (len(buf) >> SECTOR_SHIFT)
        while sector < end:
            rest = buf[(sector - first) << SECTOR_SHIFT :]
            try:
                table = tables.cached(index)
                if table is None and tables.offset_of(index):
                    table = tables.now(index)
                    if table is None:
                        self._load(index, sector, rest)
                        return finished
                if table is not None and not table.checked:
                    check_for_writing(image, table)
                done, sector = self._piece(table, sector, end, rest)
            except (TapError, OSError) as exc:
                return finished + self._failed(exc, sector, end - sector)
            finished += done
        return finished

    def _load(self, index: int, sector: int, rest: memoryview) -> None:
        def go_on(res: int) -> int:
            if res:
                return self._done(res, sector, len(rest) >> SECTOR_SHIFT)
            return self._in_table(index, sector, rest)

        self._image.tables.load(index, go_on)

    def _piece(
        self, table: Table | None, sector: int, end: int, rest: memoryview
    ) -> tuple[int, int]:
        """As much as goes one way; returns how many requests were completed, and up to where.

        Raises:
            TapError, OSError: nothing was begun.
        """
        image = self._image
        cluster = sector >> image.cluster_shift
        if cluster in image.busy:
            stop = min(end, (cluster + 1) << image.cluster_shift)
            self._wait_for(cluster, sector, rest[: (stop - sector) << SECTOR_SHIFT])
            return 0, stop
        host = self._place(table, sector, end)
        stop = self._reach(table, sector, end, host)
        if host < 0:
            return self._allocate(table, sector, stop, rest)
        answer = (self._cb, self._dd, sector, stop - sector, self._id, self._prv)
        where = host + ((sector & image.sector_mask) << SECTOR_SHIFT)
        part = rest[: (stop - sector) << SECTOR_SHIFT]
        return image.write_data(where, part, answer), stop

    def _wait_for(self, cluster: int, sector: int, part: memoryview) -> None:
        self._image.busy[cluster].append(lambda: self.run(sector, part))

    # ---- where it goes ----------------------------------------------------------------------

    def _place(self, table: Table | None, sector: int, end: int) -> int:
        """Host offset of the sector's cluster if it can be written in place, else -1."""
        image = self._image
        if table is None:
            return -1
        at = (sector >> image.cluster_shift) & image.entry_mask
        entry = table.entries[at * image.geometry.words]
        if not entry & layout.COPIED or entry & layout.COMPRESSED:
            return -1
        host = entry & layout.OFFSET_MASK
        if not host and image.data is image.file:
            return -1
        if not image.extended:
            return -1 if entry & layout.ZERO and image.header.version >= 3 else host
        mask = self._touched(sector, end)
        return host if table.entries[at * 2 + 1] & mask == mask else -1

    def _touched(self, sector: int, end: int) -> int:
        """Bits of the subclusters of the sector's cluster that [sector, end) touches."""
        image = self._image
        shift = image.cluster_shift - 5
        start = sector & image.sector_mask
        stop = min(start + end - sector, image.geometry.cluster_sectors)
        low, high = start >> shift, (stop - 1) >> shift
        return ((1 << (high - low + 1)) - 1) << low

    def _reach(self, table: Table | None, sector: int, end: int, host: int) -> int:
        """How far a write from `sector` on goes on in the same way: up to which sector."""
        image = self._image
        shift = image.cluster_shift
        cluster = sector >> shift
        last = (end - 1) >> shift
        step = image.geometry.cluster_size
        while cluster < last:
            cluster += 1
            if cluster in image.busy:
                return cluster << shift
            here = self._place(table, cluster << shift, end)
            if host >= 0:
                host += step
                if here != host:
                    return cluster << shift
            elif here >= 0:
                return cluster << shift
        return end

    # ---- new clusters -----------------------------------------------------------------------

    def _allocate(
        self, table: Table | None, sector: int, stop: int, rest: memoryview
    ) -> tuple[int, int]:
        """None of the clusters of [sector, stop) can be written in place as it is; see `_piece`."""
        image = self._image
        kept = self._kept_place(table, sector)
        whole = (stop - sector) >> image.cluster_shift
        if kept >= 0 or sector & image.sector_mask or not whole:
            until = min((sector | image.sector_mask) + 1, stop)
            part = rest[: (until - sector) << SECTOR_SHIFT]
            return self._write_part(table, sector, until, kept, part), until
        host, count, _ = self._take(table, sector, whole)
        until = sector + (count << image.cluster_shift)
        part = rest[: (until - sector) << SECTOR_SHIFT]
        return self._write_whole(sector, host, count, part), until

    def _kept_place(self, table: Table | None, sector: int) -> int:
        """Host offset of space that the cluster has already, though not valid all over; or -1."""
        image = self._image
        if table is None:
            return -1
        at = (sector >> image.cluster_shift) & image.entry_mask
        entry = table.entries[at * image.geometry.words]
        if not entry & layout.COPIED or entry & layout.COMPRESSED:
            return -1
        host = entry & layout.OFFSET_MASK
        return host if host or image.data is not image.file else -1

    def _take(self, table: Table | None, sector: int, most: int) -> tuple[int, int, bool]:
        """Space for clusters of the disk: host offset, how many, and whether it holds zeroes.

        Only for those up to the first that has space already.
        """
        image = self._image
        shift = image.cluster_shift
        if image.data is not image.file:
            return sector << SECTOR_SHIFT >> image.cluster_bits << image.cluster_bits, most, False
        count = 1
        while count < most and self._kept_place(table, sector + (count << shift)) < 0:
            count += 1
        refcounts = image.refcounts
        end = refcounts.end
        taken, count = refcounts.allocate(count)
        host = taken << image.cluster_bits
        return host, count, host >= end and image.cipher is None

    def _give_back(self, host: int, count: int, kept: int) -> None:
        if kept < 0 and self._image.data is self._image.file:
            self._image.give_back(host >> self._image.cluster_bits, count)

    def _write_whole(self, sector: int, host: int, count: int, buf: memoryview) -> int:
        image = self._image
        cluster = sector >> image.cluster_shift
        for number in range(cluster, cluster + count):
            image.busy[number] = []

        def written(dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: Any) -> int:
            res = res or self._try_link(cluster, host, count)
            if res:
                self._give_back(host, count, -1)
            finished = self._done(res, sector, nb)
            for number in range(cluster, cluster + count):
                finished += image.wake(number)
            return finished

        nb_sectors = len(buf) >> SECTOR_SHIFT
        return image.write_data(host, buf, (written, self._dd, sector, nb_sectors, 0, None))

    def _try_link(self, cluster: int, host: int, count: int) -> int:
        try:
            link(self._image, cluster, host, count)
        except ImageFormatError as exc:
            self._image.mark_corrupt(exc.message)
            return -(exc.errno or errno.EIO)
        except (TapError, OSError) as exc:
            return -(exc.errno or errno.EIO)
        return 0

    # ---- a part of a cluster ----------------------------------------------------------------

    def _write_part(
        self, table: Table | None, sector: int, end: int, kept: int, buf: memoryview
    ) -> int:
        """A cluster that is written in part, or that has space already."""
        image = self._image
        cluster = sector >> image.cluster_shift
        lo, hi, alone = self._bounds(table, sector, end, kept)
        # past the disk's end there are zeroes, which a larger disk would show
        fill = [(a, b) for a, b in ((lo, sector), (end, min(hi, image.dd.size))) if a < b]
        covered = (lo, hi) == (sector, end)
        host, fresh = kept, False
        if kept < 0:
            host, _, fresh = self._take(table, sector, 1)
        link_as = (cluster, host, lo, hi, alone)
        try:
            untouched = not covered and fresh and shows_zeroes(image, table, fill)
            if untouched:  # a hole of the file, which need not be written
                image.file.truncate_up(image.refcounts.end)
        except (TapError, OSError):
            self._give_back(host, 1, kept)
            raise
        image.busy[cluster] = []
        if covered or untouched:
            return self._write_out(link_as, kept, sector, buf, sector, end)
        view = memoryview(bytearray((hi - lo) << SECTOR_SHIFT))

        def gathered(res: int) -> int:
            if res:
                self._give_back(host, 1, kept)
                return self._done(res, sector, end - sector) + image.wake(cluster)
            at = (sector - lo) << SECTOR_SHIFT
            view[at : at + len(buf)] = buf
            return self._write_out(link_as, kept, lo, view, sector, end)

        return Fill(image, gathered).start(table, fill, lo, view)

    def _bounds(
        self, table: Table | None, sector: int, end: int, kept: int
    ) -> tuple[int, int, bool]:
        """What has to be written: from which sector to which; and whether nothing else stays."""
        image = self._image
        start = sector & ~image.sector_mask
        stop = start + image.geometry.cluster_sectors
        if not image.extended:
            return start, stop, True
        at = ((sector >> image.cluster_shift) & image.entry_mask) * 2
        entry, bitmap = (0, 0) if table is None else tuple(table.entries[at : at + 2])
        if kept < 0 and entry & (layout.OFFSET_MASK | layout.COMPRESSED):
            return start, stop, True  # shared, or compressed: all of it moves
        shift = image.cluster_shift - 5
        mask = (1 << shift) - 1
        lo, hi = sector, end
        if sector & mask and not bitmap >> ((sector & image.sector_mask) >> shift) & 1:
            lo = sector & ~mask
        if end & mask and not bitmap >> (((end - 1) & image.sector_mask) >> shift) & 1:
            hi = (end | mask) + 1
        return lo, hi, False

    def _write_out(
        self,
        link_as: tuple[int, int, int, int, bool],
        kept: int,
        at: int,
        content: memoryview,
        sector: int,
        end: int,
    ) -> int:
        """Write into the cluster's space, link it, and answer for [sector, end)."""
        image = self._image
        cluster, host, lo, hi, alone = link_as

        def written(dd: DiskDriver, res: int, *_: Any) -> int:
            res = res or self._try_link_part(cluster, host, lo, hi, alone)
            if res:
                self._give_back(host, 1, kept)
            return self._done(res, sector, end - sector) + image.wake(cluster)

        where = host + ((at & image.sector_mask) << SECTOR_SHIFT)
        nb_sectors = len(content) >> SECTOR_SHIFT
        return image.write_data(where, content, (written, self._dd, at, nb_sectors, 0, None))

    def _try_link_part(self, cluster: int, host: int, lo: int, hi: int, alone: bool) -> int:
        if not self._image.extended:
            return self._try_link(cluster, host, 1)
        mask = layout.ALL_ALLOCATED if alone else self._touched(lo, hi)
        try:
            link_subclusters(self._image, cluster, host, mask, alone=alone)
        except ImageFormatError as exc:
            self._image.mark_corrupt(exc.message)
            return -(exc.errno or errno.EIO)
        except (TapError, OSError) as exc:
            return -(exc.errno or errno.EIO)
        return 0
