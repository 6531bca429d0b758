"""An open image: what says where, what moves bytes, and what brings tables to the disk."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from typing import TYPE_CHECKING, Final

import attrs

from tap_qcow.content import Content
from tap_qcow.entries import Entries, pack_entries
from tap_qcow.header import HEADER, Header, read_header
from tap_qcow.inflater import Inflater
from tap_qcow.mapping import ClusterMap
from tap_qcow.newclusters import NewClusters
from tap_qcow.reader import Reader
from tap_qcow.space import Space
from tap_qcow.tables import l1_of
from tap_qcow.writeback import Writeback
from tap_qcow.writer import Writer
from tap_qcow.xen import xen_checksum
from tapcore import DiskDriver, ImageFile, UsageError, open_image_file

if TYPE_CHECKING:
    from tap_qcow.deflater import Deflater
    from tap_qcow.zeroing import Zeroer
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
        little: the L1 table is little-endian in the file.
        dd: the image in its chain.

    Attributes:
        file: as given.
        map: says where a sector lies.
        space: where the next cluster goes.
        content: moves that of plain clusters.
        inflater: reads compressed clusters.
        writeback: brings changed tables to the disk.
        reader, writer, deflater, zeroer: do the requests.
    """

    def __init__(
        self, file: ImageFile, header: Header, l1: Entries, dd: DiskDriver, *, little: bool
    ) -> None:
        self.file = file
        self.map = ClusterMap(file, header, l1, dd.options.metadata_cache, little=little)
        self.space = Space(header.geometry, file.size, paged=header.xen is not None)
        self.content = Content(file, _cipher(header, dd))
        self.inflater = Inflater(file, header.geometry)
        self.writeback = Writeback(self.map)
        self.reader = Reader(self.map, self.content, self.inflater)
        self._new = NewClusters(self.map, self.space, self.content, self.inflater, self.writeback)
        self.writer = Writer(dd, self.map, self.space, self.content, self._new, self.writeback)
        xen = header.xen
        self._sealed = xen is not None and xen.checksum == xen_checksum(pack_entries(l1))

    @cached_property
    def deflater(self) -> Deflater:
        """Imported when the first compressed write comes."""
        from tap_qcow.deflater import Deflater

        return Deflater(self.map, self.space, self.content, self._new, self.writer, self.writeback)

    @cached_property
    def zeroer(self) -> Zeroer:
        """The same for zeroes and discards."""
        from tap_qcow.zeroing import Zeroer

        return Zeroer(self.map, self.content)

    def seal(self) -> None:
        """Bring blktap's checksum up to date, if it was right; all tables must be on disk.

        Raises:
            OSError: as the system says.
        """
        xen = self.map.header.xen
        if not self._sealed or xen is None:
            return
        checksum = xen_checksum(pack_entries(self.map.tables.l1))
        if checksum != xen.checksum:
            xen.checksum = checksum
            self.file.write_metadata(HEADER.size, xen.pack())

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
