"""An open image: what says where, what moves bytes, and what brings tables to the disk."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import attrs

from tap_qcow.header import HEADER, Header, read_header
from tap_qcow.mapping import QcowMap
from tap_qcow.tables import L2
from tap_qcow.xen import xen_checksum
from tapcore import DiskDriver, ImageFile, UsageError, open_image_file
from tapcore.clusters import WritableClusters

if TYPE_CHECKING:
    from tapcore.sectorcipher import SectorCipher

log = logging.getLogger(__name__)

SMALLEST_DIRECT: Final = 4096
"""Clusters of fewer bytes share pages with each other, which O_DIRECT would not bear."""


class Image:
    """Everything that the hooks share.

    Args:
        dd: the image in its chain.
        file: the image file, which the image owns.
        header: of it.

    Attributes:
        file: as given.
        map: says where a sector lies.
        clusters: moves the bytes.
    """

    def __init__(self, dd: DiskDriver[Any], file: ImageFile, header: Header) -> None:
        self.file = file
        self.map = QcowMap(dd, file, header, _cipher(header, dd))
        self.clusters = WritableClusters(dd, self.map)
        self._sealed = header.xen is not None and header.xen.checksum == self._checksum()

    def _checksum(self) -> bytes:
        return xen_checksum(L2.encode(self.map.l1.entries))

    def seal(self) -> None:
        """Bring blktap's checksum up to date, if it was right; all tables must be on disk.

        Raises:
            OSError: as the system says.
        """
        xen = self.map.header.xen
        if not self._sealed or xen is None:
            return
        checksum = self._checksum()
        if checksum != xen.checksum:
            xen.checksum = checksum
            self.file.write_metadata(HEADER.size, xen.pack())

    def save(self) -> None:
        """Bring everything to the disk and wait for it.

        Raises:
            OSError: as the system says.
        """
        self.clusters.save()
        if not self.file.read_only:
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


def open_image(dd: DiskDriver[Any], name: str, flags: int) -> Image:
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
            return Image(dd, file, header)
    except BaseException:
        file.close()
        raise
    file.close()
    log.warning("%s: its clusters are too small for O_DIRECT; using the page cache", name)
    dd.options = attrs.evolve(dd.options, cache="writeback")
    return open_image(dd, name, flags)


def _cipher(header: Header, dd: DiskDriver[Any]) -> SectorCipher | None:
    if not header.encrypted or dd.options.metadata_only:
        return None
    passphrase = dd.options.keys.passphrase(dd.name)
    if passphrase is None:
        raise UsageError("is encrypted; --key-file FILE gives the passphrase")
    from tapcore.sectorcipher import legacy_aes  # not loaded for images that are not encrypted

    return legacy_aes(passphrase)
