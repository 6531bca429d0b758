"""An open image: its file, its header, its tables, and where the next cluster goes."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Final

import attrs

from tap_qcow import words
from tap_qcow.compressed import Inflater
from tap_qcow.header import (
    HEADER,
    XEN_BIG_ENDIAN,
    XEN_PAGE,
    Header,
    XenExtension,
    read_header,
    xen_checksum,
)
from tap_qcow.requests import first_write, read, write
from tap_qcow.tables import Tables, l1_of
from tap_qcow.words import Words
from tap_qcow.writeback import Writeback
from tapcore import DiskDriver, ImageFile, ImageFormatError, UsageError, open_image_file

if TYPE_CHECKING:
    from tap_qcow.claims import Claim
    from tapcore.sectorcipher import SectorCipher

log = logging.getLogger(__name__)

SMALLEST_DIRECT: Final = 4096
"""Clusters of fewer bytes share pages with each other, which O_DIRECT would not bear."""


class Image:
    """Everything that the hooks share.

    Args:
        file: the image file, which the image owns.
        header: of it.
        l1: its L1 table.
        little: the L1 table is little-endian in the file, as old versions of blktap wrote it.
        dd: the image in its chain.

    Attributes:
        file: as given.
        dd: as given.
        writing: the preparations for a first change have been made.
        header: as given; on disk but for what is being changed.
        geometry: sizes and shifts.
        sectors: of the disk.
        little: as given.
        tables: L1 and L2.
        writeback: brings changes of these to the disk.
        inflater: reads compressed clusters.
        cipher: of an encrypted image whose content is wanted.
        fills: what a write leaves out of a new cluster must be written, too: the parent's content,
            or zeroes, encrypted.
        claims: clusters that are being stored for the first time.
        end: where the next cluster goes, at the earliest; bytes.
        read, write: do requests; arguments and result are the hooks', the image before them.
        places_end: behind the header, the parent's name and the L1 table; bytes.
    """

    def __init__(
        self, file: ImageFile, header: Header, l1: Words, dd: DiskDriver, *, little: bool
    ) -> None:
        self.file = file
        self.header = header
        self.dd = dd
        self.geometry = header.geometry
        self.sectors = header.sectors
        self.little = little
        self.cipher = _cipher(header, dd)
        self.fills = header.encrypted or bool(header.backing_file)
        self.claims: list[Claim] = []
        self.end = file.size
        self.read, self.write = read, first_write
        self.writing = False
        self.note_places()
        cache = dd.options.metadata_cache
        self.tables = Tables(file, header.geometry, l1, self.check_place, cache)
        self.writeback = Writeback(self)
        self.inflater = Inflater(self)
        xen = header.xen
        self._sealed = xen is not None and xen.checksum == xen_checksum(words.to_bytes(l1))

    def note_places(self) -> None:
        """Where header, name and L1 table lie has changed."""
        self._places = self.header.places()
        self.places_end = max(end for _, end in self._places)

    def check_place(self, offset: int, length: int) -> None:
        """Raise ImageFormatError where a table cannot lie.

        Args:
            offset: bytes.
            length: bytes.
        """
        self.check_run(offset, length)
        if offset >= self.file.size and offset >= self.file.look_again():
            text = f"its L2 table, at offset {offset:#x}, lies past the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)

    def check_run(self, offset: int, length: int) -> None:
        """The same for plain clusters, which may be missing: past the end of the file."""
        if offset & 511 or (offset < self.places_end and self._overlaps(offset, offset + length)):
            raise ImageFormatError(f"has an impossible table entry ({offset:#x})", errno=errno.EIO)

    def _overlaps(self, offset: int, stop: int) -> bool:
        return any(offset < end and start < stop for start, end in self._places)

    def begin_writing(self) -> None:
        """Before the first change: what is lost must not get the place of what is new.

        Raises:
            ImageFormatError: clusters are missing, and nobody said that they may be.
            OSError: as the system says.
        """
        if self.writing:
            return
        from tap_qcow.missing import make_room_for_lost

        make_room_for_lost(self)
        self.writing = True
        self.write = write

    # ---- space ------------------------------------------------------------------------------

    def allocate(self, clusters: int) -> int:
        """Space for so many clusters in a row, at the end of the file; returns its byte offset.

        Raises:
            OSError: the file would become too long.
        """
        start = self.geometry.align(self.end)
        return self._take(start, clusters << self.geometry.cluster_bits)

    def allocate_table(self) -> int:
        """Space for an L2 table; blktap reads those past the page cache, and wants whole pages."""
        start = self.geometry.align(self.end)
        if self.header.xen is not None:
            start = -(-start // XEN_PAGE) * XEN_PAGE
        return self._take(start, self.geometry.table_bytes)

    def allocate_compressed(self, length: int) -> int:
        """Space for compressed clusters, which need not be aligned."""
        if self.end + length > self.geometry.compressed_limit:
            raise OSError(errno.EFBIG, "compressed clusters cannot lie so far in the file")
        return self._take(self.end, length)

    def _take(self, start: int, length: int) -> int:
        if start + length >= 1 << 63:
            raise OSError(errno.EFBIG, "the file would become too long")
        self.end = start + length
        return start

    # ---- blktap's extension -----------------------------------------------------------------

    def plain_extension(self) -> XenExtension | None:
        """What blktap's extension must say before a table changes; None where nothing must change.

        Its program must look into the L2 tables, and know the L1 table's byte order.
        """
        xen = self.header.xen
        if xen is None:
            return None
        flags = xen.flags if self.little else xen.flags | XEN_BIG_ENDIAN
        changed = attrs.evolve(xen, min_cluster_alloc=1, flags=flags)
        return None if changed == xen else changed

    def seal(self) -> None:
        """Bring blktap's checksum up to date, if it was right; all tables must be on disk.

        Raises:
            OSError: as the system says.
        """
        if not self._sealed or self.header.xen is None:
            return
        checksum = xen_checksum(words.to_bytes(self.tables.l1))
        if checksum != self.header.xen.checksum:
            self.header.xen.checksum = checksum
            self.file.write_metadata(HEADER.size, self.header.xen.pack())

    # ---- the end ----------------------------------------------------------------------------

    def save(self) -> None:
        """Bring everything to the disk and wait for it; nothing may be in flight.

        Raises:
            OSError: as the system says.
        """
        self.file.drain()
        if not self.file.read_only:
            self.writeback.all_now()
            if res := self.writeback.failure_to_tell():
                raise OSError(-res, os.strerror(-res))
            self.seal()

    def close(self) -> None:
        """Save, and close the file in any case.

        Raises:
            OSError, TapError: not everything could be saved.
        """
        try:
            self.save()
        finally:
            self.file.close()


def open_image(dd: DiskDriver, name: str, flags: int) -> Image:
    """Open an image.

    Args:
        dd: the image in its chain.
        name: path of the file, resolved and allowed.
        flags: `TD_RDONLY` or 0.

    Raises:
        OSError, TapError: it cannot be opened; nothing stays open.
    """
    file = open_image_file(name, flags, dd.options)
    try:
        header = read_header(file.read_metadata, file.size)
        small = header.geometry.cluster_size < max(SMALLEST_DIRECT, file.sector_size)
        if not file.direct or not small:
            return _image(file, header, dd)
    except BaseException:
        file.close()
        raise
    file.close()
    log.warning("%s: its clusters are too small for O_DIRECT; using the page cache", name)
    dd.options = attrs.evolve(dd.options, cache="writeback")
    return open_image(dd, name, flags)


def _image(file: ImageFile, header: Header, dd: DiskDriver) -> Image:
    file.keeps_overflow = True
    l1, little = l1_of(file.read_metadata(header.l1_offset, header.l1_bytes), file.size)
    return Image(file, header, l1, dd, little=little)


def _cipher(header: Header, dd: DiskDriver) -> SectorCipher | None:
    if not header.encrypted or dd.options.metadata_only:
        return None
    passphrase = dd.options.keys.passphrase(dd.name)
    if passphrase is None:
        raise UsageError("is encrypted; --key-file FILE gives the passphrase")
    from tapcore.sectorcipher import legacy_aes  # not loaded for images that are not encrypted

    return legacy_aes(passphrase)
