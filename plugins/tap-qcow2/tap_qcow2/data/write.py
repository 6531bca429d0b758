"""Writes: in place where the cluster is the disk's own, else into new clusters, copying on write.

A cluster that is being allocated is `busy`: what else wants to change it waits until it is linked.
New clusters are linked when their data has been written; see `tables.writeback` for what follows.
"""

from __future__ import annotations

from typing import Any

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.data.copyonwrite import Fill, shows_zeroes
from tap_qcow2.ondisk.entries import ALL_DATA, has_data, subclusters
from tap_qcow2.tables.l2tables import Table
from tap_qcow2.tables.links import check_for_writing, link, link_subclusters
from tapcore import SECTOR_SHIFT, DiskDriver, TapError, TdCallback


class Write:
    """A write, or the rest of one that had to wait.

    Args:
        clusters: of a disk that is prepared for writing.
        dd: as the hook's.
        cb: as the hook's.
        id: as the hook's.
        prv: as the hook's.
    """

    __slots__ = ("_cb", "_clusters", "_dd", "_geometry", "_id", "_prv")

    def __init__(
        self, clusters: Clusters, dd: DiskDriver, cb: TdCallback, id: int, prv: Any
    ) -> None:
        self._clusters = clusters
        self._geometry = clusters.geometry
        self._dd = dd
        self._cb = cb
        self._id = id
        self._prv = prv

    def run(self, sector: int, buf: memoryview) -> int:
        """Write `buf` from a sector on; returns how many requests were completed."""
        finished = 0
        end = sector + (len(buf) >> SECTOR_SHIFT)
        first = sector
        shift = self._geometry.table_shift
        while sector < end:
            index = sector >> shift
            stop = min(end, (index + 1) << shift)
            part = buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]
            finished += self._in_table(index, sector, part)
            sector = stop
        return finished

    def _done(self, res: int, sector: int, nb_sectors: int) -> int:
        return self._cb(self._dd, res, sector, nb_sectors, self._id, self._prv)

    def _in_table(self, index: int, sector: int, buf: memoryview) -> int:
        """The part that one L2 table maps, piece by piece.

        Each answer may lead to other writes before it returns, so each piece looks anew.
        """
        metadata = self._clusters.metadata
        tables = metadata.tables
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
                    check_for_writing(metadata, table)
                done, sector = self._piece(table, sector, end, rest)
            except (TapError, OSError) as exc:
                res = self._clusters.failure_of(exc, sector, end - sector)
                return finished + self._done(res, sector, end - sector)
            finished += done
        return finished

    def _load(self, index: int, sector: int, rest: memoryview) -> None:
        def go_on(res: int) -> int:
            if res:
                return self._done(res, sector, len(rest) >> SECTOR_SHIFT)
            return self._in_table(index, sector, rest)

        self._clusters.metadata.tables.load(index, go_on)

    def _piece(
        self, table: Table | None, sector: int, end: int, rest: memoryview
    ) -> tuple[int, int]:
        """As much as goes one way; returns how many requests were completed, and up to where.

        Raises:
            TapError, OSError: nothing was begun.
        """
        clusters, shift = self._clusters, self._geometry.cluster_shift
        cluster = sector >> shift
        if cluster in clusters.busy:
            stop = min(end, (cluster + 1) << shift)
            part = rest[: (stop - sector) << SECTOR_SHIFT]
            clusters.busy.wait(cluster, lambda: self.run(sector, part))
            return 0, stop
        host = self._place(table, sector, end)
        stop = self._reach(table, sector, end, host)
        if host < 0:
            return self._allocate(table, sector, stop, rest)
        answer = (self._cb, self._dd, sector, stop - sector, self._id, self._prv)
        where = host + ((sector & self._geometry.sector_mask) << SECTOR_SHIFT)
        part = rest[: (stop - sector) << SECTOR_SHIFT]
        return clusters.host.write(where, part, answer), stop

    # ---- where it goes ----------------------------------------------------------------------

    def _entry(self, table: Table | None, sector: int) -> tuple[int, int]:
        """The L2 entry of the sector's cluster, and its bitmap of subclusters."""
        if table is None:
            return 0, 0
        geometry = self._geometry
        at = ((sector >> geometry.cluster_shift) & geometry.entry_mask) * geometry.words
        return table.entries[at], table.entries[at + 1] if geometry.extended else 0

    def _place(self, table: Table | None, sector: int, end: int) -> int:
        """Host offset of the sector's cluster if it can be written in place, else -1."""
        if table is None:
            return -1
        geometry = self._geometry
        at = ((sector >> geometry.cluster_shift) & geometry.entry_mask) * geometry.words
        host = self._clusters.decoder.in_place(table.entries[at])
        if host < 0 or not geometry.extended:
            return host
        touched = self._touched(sector, end)
        return host if table.entries[at + 1] & touched == touched else -1

    def _touched(self, sector: int, end: int) -> int:
        """The subclusters of the sector's cluster that [sector, end) touches."""
        geometry = self._geometry
        unit = geometry.unit >> SECTOR_SHIFT
        start = sector & geometry.sector_mask
        stop = min(start + end - sector, geometry.cluster_sectors)
        return subclusters(start // unit, (stop - 1) // unit + 1)

    def _reach(self, table: Table | None, sector: int, end: int, host: int) -> int:
        """How far a write from `sector` on goes on in the same way: up to which sector."""
        geometry, busy = self._geometry, self._clusters.busy
        cluster = sector >> geometry.cluster_shift
        last = (end - 1) >> geometry.cluster_shift
        if cluster == last:
            return end
        if host >= 0 and table is not None and not busy and not geometry.extended:
            mask = geometry.entry_mask
            run = self._clusters.decoder.in_place_run(table.entries, cluster & mask, last & mask)
            return min((cluster + run) << geometry.cluster_shift, end)
        while cluster < last:
            cluster += 1
            here = self._place(table, cluster << geometry.cluster_shift, end)
            if host >= 0:
                host += geometry.cluster_size
            if cluster in busy or here != host:
                return cluster << geometry.cluster_shift
        return end

    # ---- new clusters -----------------------------------------------------------------------

    def _allocate(
        self, table: Table | None, sector: int, stop: int, rest: memoryview
    ) -> tuple[int, int]:
        """None of the clusters of [sector, stop) can be written in place as it is; see `_piece`."""
        geometry = self._geometry
        kept = self._own_space(table, sector)
        whole = (stop - sector) >> geometry.cluster_shift
        if kept >= 0 or sector & geometry.sector_mask or not whole:
            until = min((sector | geometry.sector_mask) + 1, stop)
            part = rest[: (until - sector) << SECTOR_SHIFT]
            return self._write_part(table, sector, until, kept, part), until
        host, count, _ = self._take(table, sector, whole)
        until = sector + (count << geometry.cluster_shift)
        part = rest[: (until - sector) << SECTOR_SHIFT]
        return self._write_whole(sector, host, count, part), until

    def _own_space(self, table: Table | None, sector: int) -> int:
        """Host offset of space that the cluster has already, though not valid all over; or -1."""
        return self._clusters.decoder.own_space(self._entry(table, sector)[0])

    def _take(self, table: Table | None, sector: int, most: int) -> tuple[int, int, bool]:
        """Space for clusters of the disk: host offset, how many, and whether it holds zeroes.

        Only for those up to the first that has space already.
        """
        clusters, geometry = self._clusters, self._geometry
        bits, shift = geometry.cluster_bits, geometry.cluster_shift
        if clusters.host.elsewhere:
            return sector << SECTOR_SHIFT >> bits << bits, most, False
        count = 1
        while count < most and self._own_space(table, sector + (count << shift)) < 0:
            count += 1
        allocator = clusters.metadata.allocator
        end = allocator.end
        taken, count = allocator.allocate(count)
        host = taken << bits
        return host, count, host >= end and clusters.host.cipher is None

    def _give_back(self, host: int, count: int, kept: int) -> None:
        if kept < 0 and not self._clusters.host.elsewhere:
            self._clusters.give_back(host >> self._geometry.cluster_bits, count)

    def _write_whole(self, sector: int, host: int, count: int, buf: memoryview) -> int:
        clusters = self._clusters
        cluster = sector >> self._geometry.cluster_shift
        clusters.busy.begin(cluster, count)

        def written(dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: Any) -> int:
            res = res or self._try_link(cluster, host, count)
            if res:
                self._give_back(host, count, -1)
            return self._done(res, sector, nb) + clusters.busy.end(cluster, count)

        nb_sectors = len(buf) >> SECTOR_SHIFT
        return clusters.host.write(host, buf, (written, self._dd, sector, nb_sectors, 0, None))

    def _try_link(self, cluster: int, host: int, count: int) -> int:
        try:
            link(self._clusters.metadata, cluster, host, count)
        except (TapError, OSError) as exc:
            return self._clusters.failure(exc)
        return 0

    # ---- a part of a cluster ----------------------------------------------------------------

    def _write_part(
        self, table: Table | None, sector: int, end: int, kept: int, buf: memoryview
    ) -> int:
        """A cluster that is written in part, or that has space already."""
        clusters = self._clusters
        cluster = sector >> self._geometry.cluster_shift
        lo, hi, alone = self._bounds(table, sector, end, kept)
        # past the disk's end there are zeroes, which a larger disk would show
        fill = [(a, b) for a, b in ((lo, sector), (end, min(hi, clusters.dd.size))) if a < b]
        covered = (lo, hi) == (sector, end)
        host, fresh = kept, False
        if kept < 0:
            host, _, fresh = self._take(table, sector, 1)
        link_as = (cluster, host, lo, hi, alone)
        try:
            untouched = not covered and fresh and shows_zeroes(clusters, table, fill)
            if untouched:  # a hole of the file, which need not be written
                clusters.metadata.file.truncate_up(clusters.metadata.allocator.end)
        except (TapError, OSError):
            self._give_back(host, 1, kept)
            raise
        clusters.busy.begin(cluster)
        if covered or untouched:
            return self._write_out(link_as, kept, sector, buf, sector, end)
        view = memoryview(bytearray((hi - lo) << SECTOR_SHIFT))

        def gathered(res: int) -> int:
            if res:
                self._give_back(host, 1, kept)
                return self._done(res, sector, end - sector) + clusters.busy.end(cluster)
            at = (sector - lo) << SECTOR_SHIFT
            view[at : at + len(buf)] = buf
            return self._write_out(link_as, kept, lo, view, sector, end)

        return Fill(clusters, gathered).start(table, fill, lo, view)

    def _bounds(
        self, table: Table | None, sector: int, end: int, kept: int
    ) -> tuple[int, int, bool]:
        """What has to be written: from which sector to which; and whether nothing else stays."""
        geometry = self._geometry
        start = sector & ~geometry.sector_mask
        stop = start + geometry.cluster_sectors
        if not geometry.extended:
            return start, stop, True
        entry, bitmap = self._entry(table, sector)
        if kept < 0 and self._clusters.decoder.refers(entry):
            return start, stop, True  # shared, or compressed: all of it moves
        unit = geometry.unit >> SECTOR_SHIFT
        lo, hi = sector, end
        if sector % unit and not has_data(bitmap, (sector - start) // unit):
            lo = sector - sector % unit
        if end % unit and not has_data(bitmap, (end - 1 - start) // unit):
            hi = end - end % unit + unit
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
        clusters = self._clusters
        cluster, host, lo, hi, alone = link_as

        def written(dd: DiskDriver, res: int, *_: Any) -> int:
            res = res or self._try_link_part(cluster, host, lo, hi, alone)
            if res:
                self._give_back(host, 1, kept)
            return self._done(res, sector, end - sector) + clusters.busy.end(cluster)

        where = host + ((at & self._geometry.sector_mask) << SECTOR_SHIFT)
        nb_sectors = len(content) >> SECTOR_SHIFT
        return clusters.host.write(where, content, (written, self._dd, at, nb_sectors, 0, None))

    def _try_link_part(self, cluster: int, host: int, lo: int, hi: int, alone: bool) -> int:
        if not self._geometry.extended:
            return self._try_link(cluster, host, 1)
        chosen = ALL_DATA if alone else self._touched(lo, hi)
        try:
            link_subclusters(self._clusters.metadata, cluster, host, chosen, alone=alone)
        except (TapError, OSError) as exc:
            return self._clusters.failure(exc)
        return 0
