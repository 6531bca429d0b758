"""Where a write can go: into space that the disk has of its own, and how far; no byte is moved.

Source: qcow2.rst, "Cluster mapping", "Extended L2 Entries".
"""

from __future__ import annotations

from collections.abc import Collection

from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import has_data, subclusters
from tap_qcow2.tables.l2tables import Table
from tapcore import SECTOR_SHIFT


class Placement:
    """Says of sectors what their L2 table says about writing there.

    A table is that of the sector; None where no table maps it.

    Args:
        decoder: of the image's entries.
    """

    __slots__ = ("_decoder", "_geometry", "_unit")

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._geometry = decoder.geometry
        self._unit = decoder.geometry.unit >> SECTOR_SHIFT

    def entry(self, table: Table | None, sector: int) -> tuple[int, int]:
        """The L2 entry of the sector's cluster, and its bitmap of subclusters, or 0."""
        if table is None:
            return 0, 0
        geometry = self._geometry
        at = ((sector >> geometry.cluster_shift) & geometry.entry_mask) * geometry.words
        return table.entries[at], table.entries[at + 1] if geometry.extended else 0

    def own_space(self, table: Table | None, sector: int) -> int:
        """Host offset of space that the cluster has already, though not valid all over; or -1."""
        return self._decoder.own_space(self.entry(table, sector)[0])

    def in_place(self, table: Table | None, sector: int, end: int) -> int:
        """Host offset of the sector's cluster if it can be written in place, else -1."""
        if table is None:
            return -1
        geometry = self._geometry
        at = ((sector >> geometry.cluster_shift) & geometry.entry_mask) * geometry.words
        host = self._decoder.in_place(table.entries[at])
        if host < 0 or not geometry.extended:
            return host
        touched = self.touched(sector, end)
        return host if table.entries[at + 1] & touched == touched else -1

    def touched(self, sector: int, end: int) -> int:
        """The subclusters of the sector's cluster that [sector, end) touches."""
        start = sector & self._geometry.sector_mask
        stop = min(start + end - sector, self._geometry.cluster_sectors)
        return subclusters(start // self._unit, (stop - 1) // self._unit + 1)

    def reach(
        self, table: Table | None, sector: int, end: int, host: int, busy: Collection[int]
    ) -> int:
        """How far a write goes on in the same way.

        Args:
            table: see above.
            sector: the first one.
            end: the one behind the last.
            host: of the first one, as `in_place` gives it.
            busy: clusters at which it does not.

        Returns:
            The sector that it ends before.
        """
        geometry = self._geometry
        shift = geometry.cluster_shift
        cluster, last = sector >> shift, (end - 1) >> shift
        if cluster == last:
            return end
        if host >= 0 and table is not None and not busy and not geometry.extended:
            mask = geometry.entry_mask
            run = self._decoder.in_place_run(table.entries, cluster & mask, last & mask)
            return min((cluster + run) << shift, end)
        while cluster < last:
            cluster += 1
            here = self.in_place(table, cluster << shift, end)
            if host >= 0:
                host += geometry.cluster_size
            if cluster in busy or here != host:
                return cluster << shift
        return end

    def bounds(
        self, table: Table | None, sector: int, end: int, *, moves: bool
    ) -> tuple[int, int, bool]:
        """What has to be written of a cluster that [sector, end) cannot be written in as it is.

        Args:
            table: see above.
            sector: the first one.
            end: the one behind the last, in the same cluster.
            moves: into new space.

        Returns:
            From which sector to which; and whether nothing else of its old state stays.
        """
        start = sector & ~self._geometry.sector_mask
        stop = start + self._geometry.cluster_sectors
        if not self._geometry.extended:
            return start, stop, True
        entry, bitmap = self.entry(table, sector)
        if moves and self._decoder.refers(entry):
            return start, stop, True  # shared, or compressed: all of it moves
        unit, low, high = self._unit, sector, end
        if sector % unit and not has_data(bitmap, (sector - start) // unit):
            low = sector - sector % unit
        if end % unit and not has_data(bitmap, (end - 1 - start) // unit):
            high = end - end % unit + unit
        return low, high, False
