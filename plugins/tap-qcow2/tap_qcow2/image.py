"""An open image: its files, its header, its tables, and in which state all that is."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from tap_qcow2.data.diskmap import DiskMap
from tap_qcow2.data.missing import refuse_to_hide
from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import Header
from tap_qcow2.tables.headerwriter import HeaderWriter
from tap_qcow2.tables.metadata import Metadata
from tap_qcow2.tables.structures import OverlapError, metadata_clusters
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    DiskId,
    ImageFile,
    ImageFormatError,
)
from tapcore.clusters import ASK, NOWHERE, WritableClusters, rising_until

if TYPE_CHECKING:
    from tap_qcow2.bitmaps.tracker import BitmapTracker
    from tapcore.sectorcipher import SectorCipher


class Image(DiskMap):
    """Everything that the hooks share.

    Args:
        file: the image file, open.
        header: of it.
        dd: the image in its chain.
        data: the external data file, if it is open.

    Attributes:
        cluster_bits: log2 of the cluster size.
        refcounts: of host clusters.
        allocator: gives out host clusters.
        clusters: moves the content.
        writeback: brings changes to the disk.
        header_writer: brings the header there.
        tracker: of bitmaps that record what is written; None where there are none.
        fast_read: the short way through the read hook may be taken.
        fast_write: the same for the write hook.
    """

    def __init__(
        self, file: ImageFile, header: Header, dd: DiskDriver, data: ImageFile | None = None
    ) -> None:
        metadata = Metadata(file, header, dd.options.metadata_cache, _tell_of_cut(dd))
        super().__init__(dd, file, metadata, data)
        self.cluster_bits = header.cluster_bits
        self.refcounts = metadata.refcounts
        self.allocator = metadata.allocator
        self.clusters = WritableClusters(dd, self)
        self.writeback = self.clusters.writeback
        self.header_writer = HeaderWriter(
            dd.name, metadata, self.writeback, self._stop_writing, read_only=dd.read_only
        )
        self.tracker: BitmapTracker | None = None
        self._as_a_whole = False
        self._prepare_short_ways()
        self.choose_paths(writing=False)

    def _prepare_short_ways(self) -> None:
        """What they look at, without a way through other objects."""
        geometry, decoder = self.geometry, self.decoder
        self.young = self.tables.young
        self.busy = self.clusters.busy
        self.sector_mask = geometry.sector_mask
        self.entry_mask = geometry.entry_mask
        self.offset_mask = decoder.offset_mask
        self.not_plain = decoder.not_plain
        self.kind_mask = decoder.kind_mask
        self.single = decoder.single

    def over(self, file: ImageFile) -> Image:
        """The same image, with nothing in memory changed, over what stands for its file."""
        data = self.data if self.elsewhere else None
        return Image(file, copy.deepcopy(self.header), self.dd, data)

    @property
    def size(self) -> int:
        """Of the disk shown, bytes; a snapshot's own where one is shown."""
        return self.sectors << SECTOR_SHIFT

    @size.setter
    def size(self, size: int) -> None:
        self.sectors = size >> SECTOR_SHIFT

    def choose_paths(self, *, writing: bool) -> None:
        """After a change of what the short ways do not look at."""
        plain = self.cipher is None and not self.geometry.extended and not self.elsewhere
        self.fast_read = plain
        self.fast_write = plain and writing and self.tracker is None

    # ---- the short ways ---------------------------------------------------------------------

    def place(self, sector: int, nb_sectors: int) -> int:
        """Inside one cluster, by an entry of a table in memory; else as for every map."""
        table = self.young.get(sector >> self.table_shift)
        skip = sector & self.sector_mask
        if table is None or not self.fast_read or skip + nb_sectors > self.sector_mask + 1:
            return super().place(sector, nb_sectors)
        entry = table.entries[(sector >> self.cluster_shift) & self.entry_mask]
        host = entry & self.offset_mask  # masks of `ondisk.decoder`
        if host and not entry & self.not_plain:
            return host + (skip << SECTOR_SHIFT)
        return ASK if entry else NOWHERE

    def place_to_write(self, sector: int, nb_sectors: int) -> int:
        """The same of a cluster that is the disk's own, while no bitmap has to be told."""
        if self.tracker is not None:
            return ASK
        table = self.young.get(sector >> self.table_shift)
        skip = sector & self.sector_mask
        if table is None or not self.fast_write:
            return super().place_to_write(sector, nb_sectors)
        at = (sector >> self.cluster_shift) & self.entry_mask
        entry = table.entries[at]
        host = entry & self.offset_mask
        if not table.sound or not host or entry & self.kind_mask != self.single:
            return ASK
        if skip + nb_sectors > self.sector_mask + 1:  # in several clusters, side by side
            stop = at + ((skip + nb_sectors - 1) >> self.cluster_shift) + 1
            step = (self.sector_mask + 1) << SECTOR_SHIFT
            if stop > self.entry_mask + 1 or rising_until(table.entries, at, stop, step) < stop:
                return ASK
        return host + (skip << SECTOR_SHIFT)

    # ---- what they depend on ----------------------------------------------------------------

    def use_cipher(self, cipher: SectorCipher, *, by_host: bool) -> None:
        """From now on content is decrypted and encrypted on its way.

        Args:
            cipher: with the image's key.
            by_host: sector numbers are those of the host file, as in LUKS, not of the disk.
        """
        self.cipher, self.cipher_by_place = cipher, by_host
        self.clusters.choose_ways()
        self.choose_paths(writing=self.clusters.writing)

    def track_bitmaps(self) -> BitmapTracker:
        """What records changes in bitmaps; from now on there is one."""
        if self.tracker is None:
            from tap_qcow2.bitmaps.tracker import BitmapTracker

            self.tracker = BitmapTracker(self.dd.name, self.metadata, self.writeback)
            self.choose_paths(writing=self.clusters.writing)
        return self.tracker

    # ---- the parent -------------------------------------------------------------------------

    def record_parent(self, parent: DiskId | None) -> None:
        """Record another parent, or none.

        Raises:
            UsageError: the name does not fit into the header's cluster.
            OSError: it could not be written.
        """
        header = self.header
        before = header.backing_file, header.backing_format
        header.backing_file = parent.name if parent is not None else ""
        header.backing_format = format_name(parent) if parent is not None else ""
        try:
            self.header_writer.write()
        except BaseException:
            header.backing_file, header.backing_format = before
            raise

    # ---- changing it ------------------------------------------------------------------------

    def begin_writing(self) -> None:
        """Before the first change: know what must not be overwritten, say that it is in use.

        By way of `clusters.begin_writing`, which does it once.

        Raises:
            TapError: it must not be written.
            OSError: the header could not be written.
        """
        if self.broken:
            raise ImageFormatError("is damaged, and not written any more", errno=errno.EIO)
        try:
            self.allocator.metadata = metadata_clusters(self.metadata)
        except OverlapError as exc:
            if not self._as_a_whole:
                self.damaged(exc.message)
            raise
        if not self.dd.options.metadata_only:
            refuse_to_hide(self, self.clusters.disk.content.bytes_there)
        if self.header.lazy_refcounts and not self.stages.lazy:
            self.header.incompatible |= layout.INCOMPAT_DIRTY
            self.header_writer.write_fields()
            self.stages.lazy = True
        if self.tracker is not None:
            self.tracker.begin()
        self.choose_paths(writing=True)

    def begin_change(self) -> None:
        """Before a change of the image as a whole, which is refused where structures overlap.

        A request gives up such an image besides. Raises as `begin_writing`.
        """
        self._as_a_whole = True
        try:
            self.clusters.begin_writing()
        finally:
            self._as_a_whole = False

    def about_to_change(self, sector: int, nb_sectors: int) -> None:
        """Before each change of content; what a larger disk will show is none."""
        if self.tracker is not None and sector < self.sectors:
            self.tracker.mark(sector, nb_sectors)

    def found_damage(self, reason: str) -> None:
        """It was noted for the request that has met it."""
        self.header_writer.mark_corrupt(reason, told=True)

    def damaged(self, reason: str) -> None:
        """Damage was found that concerns no request."""
        self.header_writer.mark_corrupt(reason, told=False)

    def _stop_writing(self) -> None:
        self.clusters.stop_writing()
        self.choose_paths(writing=False)

    @property
    def broken(self) -> bool:
        """Damage was found while it was open: it is not written any more."""
        return self.header_writer.broken

    def clean(self) -> None:
        """Bring everything to the disk; afterwards the file alone is the image, without leaks.

        Raises:
            OSError: as the system says.
        """
        if self.dd.read_only or not self.clusters.writing:
            return
        stages = self.stages
        stages.closing = True
        try:
            if self.tracker is not None:
                self.tracker.store()
            self.writeback.all_now()
            if stages.lazy and not self.broken:
                self.header.incompatible &= ~layout.INCOMPAT_DIRTY
                self.header_writer.write_fields()
                stages.lazy = False
            if res := self.writeback.failure_to_tell():
                raise OSError(-res, os.strerror(-res))
        finally:
            stages.closing = False
        self._stop_writing()

    def close(self) -> None:
        """Finish, write everything back, release.

        Raises:
            TapError, OSError: writing back failed; all is released all the same.
        """
        try:
            self.clusters.drain()
            self.clean()
        finally:
            try:
                if self.elsewhere:
                    self.data.close()
            finally:
                self.file.close()
                self.tables.release()


def _tell_of_cut(dd: DiskDriver) -> Callable[[str], None] | None:
    """What to do about tables that are cut: an error for tools, a line in the log for a server."""
    if dd.options.metadata_only:
        return lambda text: None
    if dd.options.missing == "error":
        return None
    losses, name = dd.td_state.losses, dd.name
    return lambda text: losses.log_zeroed(name, text)


def format_name(parent: DiskId) -> str:
    """How the header names a parent's format: as QEMU does, for which all raw files are one."""
    return "raw" if parent.drivertype in ("aio", "sync") else parent.drivertype
