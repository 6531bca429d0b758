"""Zeroes and discards: entries that say so, without writing; space is given back where it may be.

Source: qcow2.rst, "Standard Cluster Descriptor" (bit 0) and "Extended L2 Entries".
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tap_qcow2.ondisk import layout
from tap_qcow2.tables import mapping
from tap_qcow2.tables.links import own_table, release_data
from tapcore import ImageFormatError, TapError

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tap_qcow2.tables.l2tables import Table
    from tapcore import DiskDriver, TdCallback


class Zeroing:
    """A discard, or a write of zeroes, that goes through the tables.

    Args:
        image: open for writing, prepared for it.
        discard: only forget content; else it must read as zeroes afterwards.
        may_unmap: space may be given back.
        dd: as the hook's.
        cb: as the hook's.
        id: as the hook's.
        prv: as the hook's.
    """

    __slots__ = ("_cb", "_dd", "_discard", "_id", "_image", "_may_unmap", "_prv")

    def __init__(
        self,
        image: Image,
        discard: bool,
        may_unmap: bool,
        dd: DiskDriver,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> None:
        self._image = image
        self._discard = discard
        self._may_unmap = may_unmap
        self._dd = dd
        self._cb = cb
        self._id = id
        self._prv = prv

    def run(self, sector: int, end: int) -> int:
        """Take the sectors from `sector` up to `end`; returns how many requests were completed."""
        image = self._image
        finished = 0
        done_from = sector
        while sector < end:
            cluster = sector >> image.cluster_shift
            if cluster in image.busy:
                finished += self._done(0, done_from, sector)
                stop = min(end, (cluster + 1) << image.cluster_shift)
                image.busy[cluster].append(self._later(sector, stop))
                sector = done_from = stop
                continue
            try:
                res, stop = self._one(sector, end)
            except (TapError, OSError) as exc:
                if isinstance(exc, ImageFormatError):
                    image.mark_corrupt(exc.message)
                res, stop = -(exc.errno or errno.EIO), end
            if res:
                finished += self._done(0, done_from, sector)
                finished += self._done(res, sector, stop)
                done_from = stop
            sector = stop
            if sector < end and image.writeback.needed:
                image.writeback.flush(self._after_flush(sector, end))
                end = sector
        return finished + self._done(0, done_from, end)

    def _after_flush(self, sector: int, end: int) -> Callable[[int], int]:
        """So many tables have changed that the rest has to wait until they are on disk."""
        return lambda res: self._done(res, sector, end) if res else self.run(sector, end)

    def _later(self, sector: int, stop: int) -> Callable[[], int]:
        return lambda: self.run(sector, stop)

    def _done(self, res: int, sector: int, end: int) -> int:
        if sector >= end:
            return 0
        return self._cb(self._dd, res, sector, end - sector, self._id, self._prv)

    # ---- run by run -------------------------------------------------------------------------

    def _one(self, sector: int, end: int) -> tuple[int, int]:
        """The cluster, or the run of clusters without a table, at a sector: result, up to where."""
        image = self._image
        index = sector >> image.table_shift
        stop = min(end, (index + 1) << image.table_shift)
        has_table = image.tables.cached(index) is not None or image.tables.offset_of(index)
        if not has_table and self._shows_zeroes_below(sector):
            return 0, stop
        until = min((sector | image.sector_mask) + 1, end)
        table = image.tables.wait(index) if has_table else None
        whole = not sector & image.sector_mask and (
            until - sector == image.geometry.cluster_sectors or until == image.dd.size
        )
        if self._discard:
            if whole and (table is not None or image.header.version >= 3):
                self._discard_cluster(table, sector)
            return 0, until
        if not whole and not image.extended:
            return self._edge(table, sector, until), until
        if image.header.version < 3:
            return self._zero_in_version_2(table, sector, until), until
        if image.extended:
            return self._zero_subclusters(table, sector, until), until
        self._zero_cluster(sector, until)
        return 0, until

    def _shows_zeroes_below(self, sector: int) -> bool:
        """Whether a sector that is not allocated here is zero, whatever happens to the parent."""
        parent = self._image.dd.next
        return parent is None or sector >= parent.size

    def _edge(self, table: Table | None, sector: int, until: int) -> int:
        """A part of a cluster: nothing to be done where it shows zeroes already."""
        if table is not None:
            while sector < until:
                run = mapping.run_at(self._image, table, sector, until)
                zero = run.kind == mapping.ZERO or (
                    run.kind == mapping.UNALLOCATED and self._shows_zeroes_below(sector)
                )
                if not zero:
                    return -errno.EOPNOTSUPP
                sector += run.nb_sectors
            return 0
        return 0 if self._shows_zeroes_below(sector) else -errno.EOPNOTSUPP

    def _entry(self, table: Table | None, sector: int) -> tuple[int, int]:
        image = self._image
        if table is None:
            return 0, 0
        at = ((sector >> image.cluster_shift) & image.entry_mask) * image.geometry.words
        return table.entries[at], table.entries[at + 1] if image.extended else 0

    def _zero_in_version_2(self, table: Table | None, sector: int, until: int) -> int:
        """There is no flag for zeroes: only what no parent shows can be forgotten."""
        if not self._shows_zeroes_below(sector) or self._image.data is not self._image.file:
            return self._edge(table, sector, until)
        entry, _ = self._entry(table, sector)
        if entry and not self._may_unmap:
            return -errno.EOPNOTSUPP
        if entry:
            self._replace(sector, 0, 0)
        return 0

    def _zero_cluster(self, sector: int, until: int) -> None:
        image = self._image
        table = own_table(image, sector >> image.table_shift)
        entry, _ = self._entry(table, sector)
        host = entry & layout.OFFSET_MASK
        keep = (
            not self._may_unmap
            and entry & layout.COPIED
            and not entry & layout.COMPRESSED
            and (host or image.data is not image.file)
        ) or (image.data is not image.file and entry & layout.COPIED)
        self._zero_in_data_file(sector, until)
        self._replace(sector, layout.ZERO | (host | layout.COPIED if keep else 0), 0)

    def _zero_in_data_file(self, sector: int, until: int) -> None:
        """A raw data file must show the same as the image."""
        image = self._image
        if not image.header.data_file_raw:
            return
        data = image.data_file()
        offset, length = sector << 9, (until - sector) << 9
        if data.zero_blocking(offset, length, self._may_unmap):
            while length:
                content = memoryview(bytes(min(length, 1 << 20)))
                if res := data.write_blocking(offset, content):
                    raise OSError(-res, "write failed")
                offset += len(content)
                length -= len(content)

    def _zero_subclusters(self, table: Table | None, sector: int, until: int) -> int:
        image = self._image
        shift = image.cluster_shift - 5
        start, stop = sector & image.sector_mask, ((until - 1) & image.sector_mask) + 1
        low, high = -(-start >> shift), stop >> shift
        if until == image.dd.size:
            high = -(-stop >> shift)
        inner = low << shift, min(high << shift, stop)
        base = sector - start
        if inner[0] >= inner[1]:
            return self._edge(table, sector, until)
        entry, _ = self._entry(table, sector)
        if entry & layout.COMPRESSED and high - low < layout.SUBCLUSTERS:
            return self._edge(table, sector, until)
        edges = ((sector, base + inner[0]), (base + inner[1], until))
        if any(a < b and self._edge(table, a, b) for a, b in edges):
            return -errno.EOPNOTSUPP
        self._zero_in_data_file(base + inner[0], base + inner[1])
        table = own_table(image, sector >> image.table_shift)
        entry, bitmap = self._entry(table, sector)
        mask = ((1 << (high - low)) - 1) << low
        bitmap = bitmap & ~mask | mask << 32
        self._link_zeroes(sector, entry, bitmap, all_zero=bitmap == layout.ALL_ZERO)
        return 0

    def _link_zeroes(self, sector: int, entry: int, bitmap: int, *, all_zero: bool) -> None:
        drop = entry & layout.COMPRESSED or (
            all_zero and self._may_unmap and self._image.data is self._image.file
        )
        if all_zero and drop:
            entry = 0
        self._replace(sector, entry, bitmap)

    def _replace(self, sector: int, entry: int, bitmap: int) -> None:
        """Change the entry of a sector's cluster; what it does not point to any more is free."""
        image = self._image
        table = own_table(image, sector >> image.table_shift)
        old, _ = self._entry(table, sector)
        host = entry & layout.OFFSET_MASK
        plain = not old & layout.COMPRESSED and image.data is image.file
        if plain and old & layout.OFFSET_MASK and not host:
            image.writeback.discarded.add((old & layout.OFFSET_MASK) >> image.cluster_bits)
        release_data(image, old, host or -1)
        cluster = (sector >> image.cluster_shift) & image.entry_mask
        if image.extended:
            image.tables.set_extended(table, cluster, entry, bitmap)
        else:
            image.tables.set(table, cluster, entry)

    # ---- discards ---------------------------------------------------------------------------

    def _discard_cluster(self, table: Table | None, sector: int) -> None:
        """Afterwards it reads as zeroes where the format can say that, else as before."""
        image = self._image
        entry, bitmap = self._entry(table, sector)
        below = not self._shows_zeroes_below(sector)
        if image.header.version < 3:
            if not below and entry and image.data is image.file:
                self._replace(sector, 0, 0)
            return
        allocated = entry & (layout.OFFSET_MASK | layout.COMPRESSED) or (
            entry & layout.COPIED and image.data is not image.file
        )
        if not allocated and not below and not bitmap:
            return
        self._zero_in_data_file(sector, min((sector | image.sector_mask) + 1, image.dd.size))
        if image.data is not image.file and image.header.data_file_raw:
            kept = entry & (layout.OFFSET_MASK | layout.COPIED)
        else:
            kept = 0
        if image.extended:
            self._replace(sector, kept, layout.ALL_ZERO)
        else:
            self._replace(sector, kept | layout.ZERO, 0)
