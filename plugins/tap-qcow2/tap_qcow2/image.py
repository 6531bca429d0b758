"""An open image: its files, its header, its tables, and in which state all that is."""

from __future__ import annotations

import contextlib
import copy
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.data.missing import refuse_to_hide
from tap_qcow2.data.read import read
from tap_qcow2.data.write import Writer
from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.headerparser import parse_header
from tap_qcow2.tables.headerwriter import HeaderWriter
from tap_qcow2.tables.metadata import Metadata
from tap_qcow2.tables.structures import OverlapError, metadata_clusters
from tap_qcow2.tables.writeback import Writeback
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    DiskId,
    ImageFile,
    ImageFormatError,
    ImageOpenError,
    TapError,
)

if TYPE_CHECKING:
    from tap_qcow2.bitmaps.tracker import BitmapTracker
    from tapcore.sectorcipher import SectorCipher


def read_head(file: ImageFile) -> bytes:
    """The first cluster of an image file (all of a shorter file), at most 2 MiB."""
    head = file.read_metadata(0, min(file.size, 4096))
    bits = int.from_bytes(head[20:24], "big")
    if not 12 < bits <= layout.MAX_CLUSTER_BITS:
        return head
    return file.read_metadata(0, min(file.size, 1 << bits))


def _header_of(file: ImageFile, dd: DiskDriver) -> Header:
    """Read and check it, as far as it matters for what is to be done."""
    options, head = dd.options, read_head(file)
    salvage = options.salvage and not options.snapshot
    try:
        return parse_header(
            head, file_size=file.size, to_check=options.metadata_only, content_only=salvage
        )
    except ImageFormatError as exc:
        with contextlib.suppress(TapError):
            parse_header(head, file_size=file.size, content_only=True)
            exc.message += " (convert --salvage copies what is left)"
        raise


class Image:
    """Everything that the hooks share.

    Args:
        file: the image file, open.
        header: of it.
        dd: the image in its chain.

    Attributes:
        file: the image file, which the image owns.
        header: as it is to be; most of it is on disk.
        geometry: sizes and shifts.
        cluster_bits: log2 of the cluster size.
        metadata: header and tables in memory.
        tables: L1 and L2 tables.
        refcounts: of host clusters.
        allocator: gives out host clusters.
        writeback: brings changes of these to the disk.
        header_writer: brings the header to the disk.
        clusters: what moves content works with.
        host: the file that holds plain clusters.
        size: of the disk shown, bytes; a snapshot's own where one is shown.
        writing: preparations for a first change have been made.
        tracker: of bitmaps that record what is written; None where there are none.
        young: the L2 tables used lately, by L1 index: what the short ways in `driver` look into.
        busy: clusters of the disk that are being allocated.
        fast_read: the short way through the read hook may be taken.
        fast_write: the same for the write hook.
        read: what the read hook does with all that is not simple.
        write: the same for the write hook.
    """

    def __init__(self, file: ImageFile, header: Header, dd: DiskDriver) -> None:
        self.file = file
        self.dd = dd
        self.header = header
        cache = dd.options.metadata_cache
        self.metadata = metadata = Metadata(file, header, cache, _tell_of_cut(dd))
        self.geometry = metadata.geometry
        self.cluster_bits = header.cluster_bits
        self.tables = metadata.tables
        self.refcounts = metadata.refcounts
        self.allocator = metadata.allocator
        self.clusters = Clusters(dd, metadata, self._on_damage)
        self.host = self.clusters.host
        self.writeback = Writeback(
            dd.name,
            metadata,
            self.clusters.in_flight,
            self.host.flush_blocking,
            lambda reason: self._on_damage(reason, False),
        )
        self.header_writer = HeaderWriter(
            dd.name, metadata, self.writeback, self._stop_writing, read_only=dd.read_only
        )
        self.size = header.size >> SECTOR_SHIFT << SECTOR_SHIFT
        self.writing = False
        self.tracker: BitmapTracker | None = None
        self._prepare_short_ways()
        self.choose_paths()

    def _prepare_short_ways(self) -> None:
        """What they look at, without a way through other objects."""
        geometry, decoder = self.geometry, self.metadata.decoder
        self.young = self.tables.young
        self.busy = self.clusters.busy
        self.table_shift = geometry.table_shift
        self.cluster_shift = geometry.cluster_shift
        self.sector_mask = geometry.sector_mask
        self.entry_mask = geometry.entry_mask
        self.offset_mask = decoder.offset_mask
        self.not_plain = decoder.not_plain
        self.kind_mask = decoder.kind_mask
        self.single = decoder.single
        self.read = read
        self.write = Writer(self.clusters).write

    @classmethod
    def open(cls, file: ImageFile, dd: DiskDriver) -> Image:
        """Read and check header and tables of an open file.

        Raises:
            TapError: not an image, damaged, or it needs what is not known here.
            OSError: as the system says.
        """
        header = _header_of(file, dd)
        if header.corrupt and not dd.read_only and not dd.options.metadata_only:
            raise ImageOpenError(
                "is marked as corrupt: check --repair all, or open it read-only", errno=errno.EROFS
            )
        return cls(file, header, dd)

    def over(self, file: ImageFile) -> Image:
        """The same image, with nothing in memory changed, over what stands for its file."""
        other = Image(file, copy.deepcopy(self.header), self.dd)
        if self.host.elsewhere:
            other.host.file = self.host.file
        return other

    def choose_paths(self) -> None:
        """After a change of what the short ways do not look at."""
        host = self.host
        plain = host.cipher is None and not self.geometry.extended and not host.elsewhere
        self.fast_read = plain
        self.fast_write = plain and self.writing and self.tracker is None

    def use_cipher(self, cipher: SectorCipher, *, by_host: bool) -> None:
        """From now on data is decrypted and encrypted on its way; see `HostData.use_cipher`."""
        self.host.use_cipher(cipher, by_host=by_host)
        self.choose_paths()

    def track_bitmaps(self) -> BitmapTracker:
        """What records changes in bitmaps; from now on there is one."""
        if self.tracker is None:
            from tap_qcow2.bitmaps.tracker import BitmapTracker

            self.tracker = BitmapTracker(self.dd.name, self.metadata, self.writeback)
            self.choose_paths()
        return self.tracker

    # ---- the parent -------------------------------------------------------------------------

    def recorded_parent(self) -> DiskId | None:
        """What the header says; None where the image stands alone."""
        if not self.header.backing_file:
            return None
        return DiskId(self.header.backing_file, self.header.backing_format)

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

        Raises:
            TapError: it must not be written.
            OSError: the header could not be written.
        """
        if self.broken:
            raise ImageFormatError("is damaged, and not written any more", errno=errno.EIO)
        if self.writing:
            return
        self.allocator.metadata = metadata_clusters(self.metadata)
        if not self.dd.options.metadata_only:
            refuse_to_hide(self.clusters, self.size)
        if self.header.lazy_refcounts and not self.writeback.lazy:
            self.header.incompatible |= layout.INCOMPAT_DIRTY
            self.header_writer.write_fields()
            self.writeback.lazy = True
        if self.tracker is not None:
            self.tracker.begin()
        self.writing = True
        self.choose_paths()

    def about_to_change(self, sector: int, nb_sectors: int) -> None:
        """Before each change of content.

        Raises:
            TapError, OSError: as `begin_writing`.
        """
        if not self.writing:
            try:
                self.begin_writing()
            except OverlapError as exc:
                self._on_damage(exc.message, False)
                raise
        if self.tracker is not None:
            self.tracker.mark(sector, nb_sectors)

    def held_back(self) -> int:
        """Why no more tables may be changed now; 0 where they may.

        Returns:
            -EBUSY until a write-back has finished; another -errno while these fail.
        """
        if not self.tables.overfull:
            return 0
        self.writeback.when_needed()
        return self.writeback.failing or -errno.EBUSY

    def _on_damage(self, reason: str, told: bool) -> None:
        self.header_writer.mark_corrupt(reason, told=told)

    def _stop_writing(self) -> None:
        self.writing = False
        self.choose_paths()

    @property
    def broken(self) -> bool:
        """Damage was found while it was open: it is not written any more."""
        return self.header_writer.broken

    def clean(self) -> None:
        """Bring everything to the disk; afterwards the file alone is the image, without leaks.

        Raises:
            OSError: as the system says.
        """
        if self.dd.read_only or not self.writing:
            return
        writeback = self.writeback
        writeback.closing = True
        try:
            if self.tracker is not None:
                self.tracker.store()
            writeback.all_now()
            if writeback.lazy and not self.broken:
                self.header.incompatible &= ~layout.INCOMPAT_DIRTY
                self.header_writer.write_fields()
                writeback.lazy = False
            if res := writeback.failure_to_tell():
                raise OSError(-res, "an earlier flush failed")
        finally:
            writeback.closing = False
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
                if self.host.file is not None and self.host.elsewhere:
                    self.host.file.close()
            finally:
                self.file.close()
                self.tables.release()


def _tell_of_cut(dd: DiskDriver) -> Callable[[str], None] | None:
    """What to do about tables that are cut: an error for tools, a line in the log for a server."""
    if dd.options.metadata_only:
        return lambda text: None
    if dd.options.missing == "error" or dd.td_state is None:
        return None
    losses, name = dd.td_state.losses, dd.name
    return lambda text: losses.log_zeroed(name, text)


def format_name(parent: DiskId) -> str:
    """How the header names a parent's format: as QEMU does, for which all raw files are one."""
    return "raw" if parent.drivertype in ("aio", "sync") else parent.drivertype
