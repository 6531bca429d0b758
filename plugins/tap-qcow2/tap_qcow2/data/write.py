"""Writes: in place where the cluster is the disk's own, else into new clusters, copying on write.

A cluster that is being allocated is `busy`: what else wants to change it waits until it is linked.
New clusters are linked when their data has been written; see `tables.writeback` for what follows.
"""

from __future__ import annotations

from typing import NamedTuple

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.data.copyonwrite import Fill, shows_zeroes
from tap_qcow2.ondisk.entries import ALL_DATA
from tap_qcow2.tables.l2tables import Table
from tap_qcow2.tables.links import check_for_writing, link, link_subclusters
from tapcore import SECTOR_SHIFT, Answer, TapError


class Part(NamedTuple):
    """What is written of one cluster.

    Attributes:
        cluster: of the disk.
        host: offset of its space (bytes).
        taken: this space is new.
        low: first sector that is written.
        high: the one behind the last.
        alone: nothing else of the cluster's old state stays.
    """

    cluster: int
    host: int
    taken: bool
    low: int
    high: int
    alone: bool


class Writer:
    """Writes to one disk.

    Args:
        clusters: of a disk that is prepared for writing.
    """

    __slots__ = ("_busy", "_clusters", "_geometry", "_host", "_metadata", "_placement")

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._metadata = clusters.metadata
        self._geometry = clusters.geometry
        self._placement = clusters.placement
        self._host = clusters.host
        self._busy = clusters.busy

    def write(self, answer: Answer, sector: int, buf: memoryview) -> int:
        """Write a range that lies inside the disk; what has to wait is answered later.

        Args:
            answer: of the request.
            sector: the first one.
            buf: the content.

        Returns:
            How many requests were completed.
        """
        finished = 0
        end = sector + (len(buf) >> SECTOR_SHIFT)
        first = sector
        shift = self._geometry.table_shift
        if sector >> shift == (end - 1) >> shift:  # nearly all
            return self._in_table(answer, sector, buf)
        while sector < end:
            stop = min(end, ((sector >> shift) + 1) << shift)
            part = buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]
            finished += self._in_table(answer, sector, part)
            sector = stop
        return finished

    def _in_table(self, answer: Answer, sector: int, buf: memoryview) -> int:
        """The part that one L2 table maps, piece by piece.

        Each answer may lead to other writes before it returns, so each piece looks anew.
        """
        tables, index = self._metadata.tables, sector >> self._geometry.table_shift
        finished = 0
        first, end = sector, sector + (len(buf) >> SECTOR_SHIFT)
        while sector < end:
            rest = buf[(sector - first) << SECTOR_SHIFT :]
            try:
                table = tables.cached(index)
                if table is None and tables.offset_of(index):
                    table = tables.now(index)
                    if table is None:
                        self._load(answer, sector, rest)
                        return finished
                if table is not None and not table.checked:
                    check_for_writing(self._metadata, table)
                done, sector = self._piece(answer, table, sector, end, rest)
            except (TapError, OSError) as exc:
                res = self._clusters.failure_of(exc, sector, end - sector)
                return finished + answer(res, sector, end - sector)
            finished += done
        return finished

    def _load(self, answer: Answer, sector: int, rest: memoryview) -> None:
        """Go on when a thread has read the table."""

        def go_on(res: int) -> int:
            if res:
                return answer(res, sector, len(rest) >> SECTOR_SHIFT)
            return self._in_table(answer, sector, rest)

        self._metadata.tables.load(sector >> self._geometry.table_shift, go_on)

    def _piece(
        self, answer: Answer, table: Table | None, sector: int, end: int, rest: memoryview
    ) -> tuple[int, int]:
        """As much as goes one way; returns how many requests were completed, and up to where.

        Raises:
            TapError, OSError: nothing was begun.
        """
        shift = self._geometry.cluster_shift
        cluster = sector >> shift
        if cluster in self._busy:
            stop = min(end, (cluster + 1) << shift)
            self._wait(answer, sector, rest[: (stop - sector) << SECTOR_SHIFT])
            return 0, stop
        host = self._placement.in_place(table, sector, end)
        stop = self._placement.reach(table, sector, end, host, self._busy)
        if host < 0:
            return self._allocate(answer, table, sector, stop, rest)
        where = host + ((sector & self._geometry.sector_mask) << SECTOR_SHIFT)
        part = rest[: (stop - sector) << SECTOR_SHIFT]
        return self._host.write(where, part, sector, answer), stop

    def _wait(self, answer: Answer, sector: int, part: memoryview) -> None:
        """Write it when the sector's cluster is not busy any more."""
        cluster = sector >> self._geometry.cluster_shift
        self._busy.wait(cluster, lambda: self.write(answer, sector, part))

    # ---- new clusters -----------------------------------------------------------------------

    def _allocate(
        self, answer: Answer, table: Table | None, sector: int, stop: int, rest: memoryview
    ) -> tuple[int, int]:
        """None of the clusters of [sector, stop) can be written in place as it is; see `_piece`."""
        geometry = self._geometry
        kept = self._placement.own_space(table, sector)
        whole = (stop - sector) >> geometry.cluster_shift
        if kept >= 0 or sector & geometry.sector_mask or not whole:
            until = min((sector | geometry.sector_mask) + 1, stop)
            part = rest[: (until - sector) << SECTOR_SHIFT]
            return self._write_part(answer, table, sector, until, kept, part), until
        host, count, _ = self._take(table, sector, whole)
        until = sector + (count << geometry.cluster_shift)
        part = rest[: (until - sector) << SECTOR_SHIFT]
        return self._write_whole(answer, sector, host, count, part), until

    def _take(self, table: Table | None, sector: int, most: int) -> tuple[int, int, bool]:
        """Space for clusters of the disk: host offset, how many, and whether it holds zeroes.

        Only for those up to the first that has space already.
        """
        bits, shift = self._geometry.cluster_bits, self._geometry.cluster_shift
        if self._host.elsewhere:
            return sector << SECTOR_SHIFT >> bits << bits, most, False
        count = 1
        while count < most and self._placement.own_space(table, sector + (count << shift)) < 0:
            count += 1
        allocator = self._metadata.allocator
        end = allocator.end
        taken, count = allocator.allocate(count)
        host = taken << bits
        return host, count, host >= end and self._host.cipher is None

    def _give_back(self, host: int, count: int) -> None:
        if not self._host.elsewhere:
            self._clusters.give_back(host >> self._geometry.cluster_bits, count)

    def _write_whole(
        self, answer: Answer, sector: int, host: int, count: int, buf: memoryview
    ) -> int:
        cluster = sector >> self._geometry.cluster_shift
        self._busy.begin(cluster, count)

        def written(res: int, sector: int, nb_sectors: int) -> int:
            res = res or self._try_link(cluster, host, count)
            if res:
                self._give_back(host, count)
            return answer(res, sector, nb_sectors) + self._busy.end(cluster, count)

        return self._host.write(host, buf, sector, written)

    def _try_link(self, cluster: int, host: int, count: int) -> int:
        try:
            link(self._metadata, cluster, host, count)
        except (TapError, OSError) as exc:
            return self._clusters.failure(exc)
        return 0

    # ---- a part of a cluster ----------------------------------------------------------------

    def _write_part(
        self,
        answer: Answer,
        table: Table | None,
        sector: int,
        end: int,
        kept: int,
        buf: memoryview,
    ) -> int:
        """A cluster that is written in part, or that has space already (`kept`, -1: none)."""
        low, high, alone = self._placement.bounds(table, sector, end, moves=kept < 0)
        # past the disk's end there are zeroes, which a larger disk would show
        edges = (low, sector), (end, min(high, self._clusters.dd.size))
        fill = [(a, b) for a, b in edges if a < b]
        covered = (low, high) == (sector, end)
        host, fresh = kept, False
        if kept < 0:
            host, _, fresh = self._take(table, sector, 1)
        cluster = sector >> self._geometry.cluster_shift
        part = Part(cluster, host, kept < 0, low, high, alone)
        try:
            untouched = not covered and fresh and shows_zeroes(self._clusters, table, fill)
            if untouched:  # a hole of the file, which need not be written
                self._metadata.file.truncate_up(self._metadata.allocator.end)
        except (TapError, OSError):
            self._undo(part)
            raise
        self._busy.begin(cluster)
        if covered or untouched:
            return self._write_out(answer, part, sector, buf, (sector, end))
        view = memoryview(bytearray((high - low) << SECTOR_SHIFT))

        def filled(res: int) -> int:
            if res:
                self._undo(part)
                return answer(res, sector, end - sector) + self._busy.end(cluster)
            at = (sector - low) << SECTOR_SHIFT
            view[at : at + len(buf)] = buf
            return self._write_out(answer, part, low, view, (sector, end))

        return Fill(self._clusters, filled).start(table, fill, low, view)

    def _undo(self, part: Part) -> None:
        if part.taken:
            self._give_back(part.host, 1)

    def _write_out(
        self, answer: Answer, part: Part, at: int, content: memoryview, asked: tuple[int, int]
    ) -> int:
        """Write into the cluster's space from a sector on, link it, answer for [start, end)."""
        start, end = asked

        def written(res: int, *_: int) -> int:
            res = res or self._try_link_part(part)
            if res:
                self._undo(part)
            return answer(res, start, end - start) + self._busy.end(part.cluster)

        where = part.host + ((at & self._geometry.sector_mask) << SECTOR_SHIFT)
        return self._host.write(where, content, at, written)

    def _try_link_part(self, part: Part) -> int:
        cluster, host, _, low, high, alone = part
        if not self._geometry.extended:
            return self._try_link(cluster, host, 1)
        chosen = ALL_DATA if alone else self._placement.touched(low, high)
        try:
            link_subclusters(self._metadata, cluster, host, chosen, alone=alone)
        except (TapError, OSError) as exc:
            return self._clusters.failure(exc)
        return 0
