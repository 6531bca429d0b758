"""An open image: its files, its header, its tables, and in which state all that is."""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tap_qcow2.data.hostdata import read_encrypted, read_plain, write_encrypted, write_plain
from tap_qcow2.data.inflight import InFlight
from tap_qcow2.data.missing import refuse_to_hide
from tap_qcow2.data.read import read
from tap_qcow2.data.write import Write
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.header import ATOMIC, Header, parse_header
from tap_qcow2.tables.l2tables import L2Tables
from tap_qcow2.tables.refcounts import Refcounts
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
    from tap_qcow2.bitmaps.directory import BitmapTracker
    from tap_qcow2.data.inflate import Inflater
    from tapcore.sectorcipher import SectorCipher

log = logging.getLogger(__name__)

Waiting = Callable[[], int]
"""Goes on with something that had to wait; returns how many requests it completed."""


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
        data: the file that holds plain clusters: the same one, or the external data file; None
            where that was not opened, because only metadata is wanted.
        header: as it is to be; most of it is on disk.
        geometry: sizes and shifts.
        tables: L1 and L2 tables.
        refcounts: of host clusters.
        writeback: brings changes of these to the disk.
        size: of the disk shown, bytes; a snapshot's own where one is shown.
        young: the L2 tables used lately, by L1 index: what the fast paths look into.
        busy: clusters of the disk that are being allocated, and what waits for each.
        in_flight: data I/O that waits for the disk.
        writing: preparations for a first change have been made.
        broken: damage was found while it was open: it is not written any more.
        lazy: refcounts on disk may be behind, and the dirty bit there says so.
        closing: the last write-backs are under way.
        cipher: of an encrypted image, once its key is known.
        tracker: of bitmaps that record what is written; None where there are none.
        read_data: reads at a host offset (bytes), now or later; returns what the callback returned.
        write_data: the same for writing.
        read: what the read hook does with all that is not simple.
        write: the same for the write hook.
        not_plain: bits of an L2 entry, any of which makes it a case for the long way.
        kind_mask: these and the one that says that the cluster may be written in place.
        fast_read: the short way through the read hook may be taken.
        fast_write: the same for the write hook.
    """

    def __init__(self, file: ImageFile, header: Header, dd: DiskDriver) -> None:
        self.file = file
        self.data: ImageFile | None = file
        self.header = header
        self.dd = dd
        self.geometry = geometry = header.geometry
        self.cluster_bits = geometry.cluster_bits
        self.cluster_shift = geometry.cluster_shift
        self.table_shift = geometry.cluster_shift + geometry.l2_bits
        self.sector_mask = geometry.cluster_sectors - 1
        self.entry_mask = (1 << geometry.l2_bits) - 1
        self.extended = geometry.extended
        self.read_only = dd.read_only
        self.size = header.size >> SECTOR_SHIFT << SECTOR_SHIFT
        l1 = bigendian.read(file, header.l1_table_offset, header.l1_size)
        cache = dd.options.metadata_cache
        self.tables = L2Tables(
            file, geometry, l1, header.l1_table_offset, cache, on_cut=_tell_of_cut(dd)
        )
        self.young = self.tables.young
        reftable = header.refcount_table_clusters << self.cluster_bits
        self.refcounts = Refcounts(
            file,
            header,
            bigendian.from_bytes(file.read_metadata(header.refcount_table_offset, reftable)),
        )
        self.writeback = Writeback(self)
        self.busy: dict[int, list[Waiting]] = {}
        self.in_flight = InFlight()
        self.writing = False
        self.broken = False
        self.lazy = False
        self.closing = False
        self.cipher: SectorCipher | None = None
        self.cipher_by_host = True  # LUKS counts sectors of the host file, legacy AES of the disk
        self.tracker: BitmapTracker | None = None
        self._inflater: Inflater | None = None
        self.read_data = partial(read_plain, self)
        self.write_data = partial(write_plain, self)
        self.read = read
        self.write = Write
        unaligned = (geometry.cluster_size - 1) & layout.OFFSET_MASK
        self.not_plain = layout.NOT_PLAIN | unaligned
        self.kind_mask = layout.COPIED | self.not_plain
        self.fast_read = False
        self.fast_write = False
        self.choose_paths()

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
        if self.data is not self.file:
            other.data = self.data
        return other

    def choose_paths(self) -> None:
        """After a change of what the fast paths do not look at."""
        plain = self.cipher is None and not self.extended and self.data is self.file
        self.fast_read = plain
        self.fast_write = plain and self.writing and self.tracker is None

    # ---- what it needs besides --------------------------------------------------------------

    @property
    def inflater(self) -> Inflater:
        """Reads compressed clusters."""
        if self._inflater is None:
            from tap_qcow2.data.inflate import Inflater

            self._inflater = Inflater(self)
        return self._inflater

    def use_cipher(self, cipher: SectorCipher, *, by_host: bool) -> None:
        """From now on data is decrypted and encrypted on its way.

        Args:
            cipher: with the image's key.
            by_host: sector numbers are those of the host file, not of the disk.
        """
        self.cipher = cipher
        self.cipher_by_host = by_host
        self.read_data = partial(read_encrypted, self)
        self.write_data = partial(write_encrypted, self)
        self.choose_paths()

    def data_file(self) -> ImageFile:
        """The file that holds plain clusters.

        Raises:
            ImageOpenError: it was not opened.
        """
        if self.data is None:
            raise ImageOpenError("its data file was not opened", errno=errno.EBADF)
        return self.data

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
            self.write_header()
        except BaseException:
            header.backing_file, header.backing_format = before
            raise

    def submit(self) -> None:
        """Hand queued direct I/O to the kernel, and compressed clusters to a thread."""
        if self._inflater is not None:
            self._inflater.submit()
        self.file.submit()
        if self.data is not None and self.data is not self.file:
            self.data.submit()

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
        self.refcounts.metadata = metadata_clusters(self)
        if not self.dd.options.metadata_only:
            refuse_to_hide(self)
        if self.header.lazy_refcounts and not self.lazy:
            self.header.incompatible |= layout.INCOMPAT_DIRTY
            self.write_header_fields()
            self.lazy = True
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
                self.mark_corrupt(exc.message)
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

    def give_back(self, cluster: int, count: int) -> None:
        """Host clusters that were given out, and that nothing ever pointed to, are free again."""
        try:
            self.refcounts.take_back(cluster, count)
        except ImageFormatError as exc:
            self.mark_corrupt(exc.message)
        except OSError as exc:  # a reason to fail was there before
            log.warning("%s: clusters are leaked: %s", self.dd.name, exc.strerror)

    def write_header_fields(self) -> None:
        """Write the header's fixed part, and wait until it is on disk.

        Raises:
            OSError: as the system says.
        """
        self._settle_refcount_table()
        self.file.write_metadata(0, self.header.fields())
        self.flush_file()

    def change_header(self, **fields: int) -> None:
        """Write the header with other values of some fields, and wait until they are on disk.

        Raises:
            OSError: the old values stand; or, where these cannot be written again, nobody knows
                which are on disk, and the image is not written any more.
        """
        before = {name: getattr(self.header, name) for name in fields}
        try:
            for name, value in fields.items():
                setattr(self.header, name, value)
            self.write_header_fields()
        except BaseException:
            for name, value in before.items():
                setattr(self.header, name, value)
            try:
                self.write_header_fields()
            except OSError:
                log.error("%s: its header cannot be written", self.dd.name)
                self._give_up()
            raise

    def write_header(self) -> None:
        """Write the header with its extensions and names, and wait until it is on disk.

        Raises:
            OSError: as the system says.
            UsageError: it does not fit into its cluster.
        """
        self._settle_refcount_table()
        header = self.header
        before = header.length, header.backing_offset
        try:
            head, name = header.parts(with_names=False)
            self._write_header_parts(head, header.backing_offset, name)
        except BaseException:
            header.length, header.backing_offset = before
            raise
        end = header.backing_offset + len(name)
        header.stored_name = (header.backing_offset, end) if name else (0, 0)

    def _settle_refcount_table(self) -> None:
        """Where it has a new place, of which the header must not tell before it is there."""
        if self.refcounts.table_moved or self.writeback.running:
            self.writeback.all_now()

    def _write_header_parts(self, head: bytes, at: int, name: bytes) -> None:
        """First what lies behind the first sector, which then makes all of it valid as one."""
        behind = [(ATOMIC, head[ATOMIC:]), (max(at, ATOMIC), name[max(ATOMIC - at, 0) :])]
        for offset, content in behind:
            if content:
                self.file.write_metadata(offset, content)
        if any(content for _, content in behind):
            self.flush_file()
        first = head[:ATOMIC]
        if name and at < ATOMIC:
            first += name[: ATOMIC - at]
        self.file.write_metadata(0, first.ljust(ATOMIC, b"\0"))
        self.flush_file()

    def flush_file(self) -> None:
        """fdatasync of the image file; raises OSError."""
        if res := self.file.flush_blocking():
            raise OSError(-res, "flush failed")

    def mark_corrupt(self, reason: str, *, told: bool = False) -> None:
        """Damage was found: let nobody write any more.

        Args:
            reason: what is wrong, for the log.
            told: it was noted for the requests that it concerns.
        """
        if self.broken:
            return
        if not told:
            log.error("%s: %s", self.dd.name, reason)
        self._give_up()
        if self.read_only or self.header.version < 3:
            return
        self.header.incompatible |= layout.INCOMPAT_CORRUPT
        try:
            at = layout.INCOMPAT_OFFSET  # no more: the refcount table may be about to move
            self.file.write_metadata(at, self.header.incompatible.to_bytes(8, "big"))
        except OSError as exc:
            log.error("%s: it could not be marked as corrupt: %s", self.dd.name, exc.strerror)

    def _give_up(self) -> None:
        self.broken = True
        self.writing = False
        self.choose_paths()

    def clean(self) -> None:
        """Bring everything to the disk; afterwards the file alone is the image, without leaks.

        Raises:
            OSError: as the system says.
        """
        if self.read_only or not self.writing:
            return
        self.closing = True
        try:
            if self.tracker is not None:
                self.tracker.store()
            self.writeback.all_now()
            if self.lazy and not self.broken:
                self.header.incompatible &= ~layout.INCOMPAT_DIRTY
                self.write_header_fields()
                self.lazy = False
            if res := self.writeback.failure_to_tell():
                raise OSError(-res, "an earlier flush failed")
        finally:
            self.closing = False
        self.writing = False
        self.choose_paths()

    def wake(self, cluster: int) -> int:
        """A cluster is allocated now, or that failed: go on with what waited for it."""
        return sum(go_on() for go_on in self.busy.pop(cluster, ()))

    def close(self) -> None:
        """Finish, write everything back, release.

        Raises:
            TapError, OSError: writing back failed; all is released all the same.
        """
        try:
            self._drain()
            self.clean()
        finally:
            try:
                if self.data is not None and self.data is not self.file:
                    self.data.close()
            finally:
                self.file.close()
                self.tables.release()

    def _drain(self) -> None:
        """What finishes in one file may begin something in the other."""
        files = [self.file] if self.data in (None, self.file) else [self.file, self.data_file()]
        self.submit()
        while any(file.in_flight for file in files):
            for file in files:
                file.drain()
            self.submit()


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
