"""Opening an image: its files, its key, the snapshot asked for; and what writing demands of it."""

from __future__ import annotations

import logging
from typing import Final

import attrs

from tap_qcow2.data.missing import make_holes_of_lost
from tap_qcow2.data.unopened import UnopenedFile
from tap_qcow2.image import Image
from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.headerreading import header_of
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    ImageFile,
    ImageFormatError,
    ImageOpenError,
    open_image_file,
    open_named_file,
    passphrase_readings,
)

log = logging.getLogger(__name__)

PAGE: Final = 4096
"""Under O_DIRECT data must not share pages with metadata, which goes through the page cache."""


def open_image(dd: DiskDriver, name: str, flags: int) -> Image:
    """Open an image with all that it needs.

    Args:
        dd: the new image, with its options.
        name: path, resolved and allowed.
        flags: `TD_RDONLY` or 0.

    Raises:
        TapError, OSError: it cannot be opened; everything was closed again.
    """
    file = _open_file(dd, name, flags)
    data: ImageFile | None = None
    try:
        header = header_of(file, dd)
        data = _open_data_file(dd, header, flags)
        image = Image(file, header, dd, data)
        _set_up_cipher(image)
        if dd.options.snapshot:
            _show_snapshot(image, dd.options.snapshot)
        elif not dd.read_only:
            _prepare_for_writing(image)
    except BaseException:
        if data is not None:
            data.close()
        file.close()
        raise
    image.clusters.attach()
    if isinstance(image.data, UnopenedFile):
        dd.io_fd[1] = None
    return image


def _open_file(dd: DiskDriver, name: str, flags: int) -> ImageFile:
    file = open_image_file(name, flags, dd.options)
    if dd.options.cache == "writeback":
        return file
    try:
        bits = int.from_bytes(file.read_metadata(20, 4), "big")
    except BaseException:
        file.close()
        raise
    if 1 << min(bits, layout.MAX_CLUSTER_BITS) >= PAGE:
        return file
    log.warning("%s: its clusters are smaller than a page; using the page cache", name)
    file.close()
    return open_image_file(name, flags, attrs.evolve(dd.options, cache="writeback"))


def _open_data_file(dd: DiskDriver, header: Header, flags: int) -> ImageFile | None:
    if not header.has_data_file or dd.options.metadata_only:
        return None
    if not header.data_file:
        raise ImageFormatError("has an external data file, but does not name it")
    return open_named_file(dd, header.data_file, role="data file", flags=flags)


def _set_up_cipher(image: Image) -> None:
    method = image.header.crypt_method
    if method == layout.CRYPT_NONE or image.dd.options.metadata_only:
        return
    passphrase = image.dd.options.keys.passphrase(image.dd.name)
    if passphrase is None:
        raise ImageOpenError("is encrypted: --key-file FILE names the file with its passphrase")
    if method == layout.CRYPT_AES:
        from tapcore.sectorcipher import legacy_aes

        if not image.dd.read_only:
            raise ImageOpenError(
                "has the legacy AES encryption, which is only read: convert it to LUKS"
            )
        image.use_cipher(legacy_aes(passphrase), by_host=False)
        return
    from tapcore.luks import WrongPassphraseError, open_luks

    if image.header.crypto is None:
        raise ImageFormatError("is encrypted with LUKS, but has no LUKS header")
    offset, length = image.header.crypto
    if offset % image.geometry.cluster_size or not 0 < length <= layout.MAX_CRYPTO_HEADER:
        raise ImageFormatError("has its LUKS header at an impossible place")
    if offset + length > image.file.size:
        raise ImageFormatError("has its LUKS header outside of the file")
    content = image.file.read_metadata(offset, length)
    *others, last = passphrase_readings(passphrase)
    for reading in others:
        try:
            image.use_cipher(open_luks(content, reading), by_host=True)
        except WrongPassphraseError:
            continue
        return
    image.use_cipher(open_luks(content, last), by_host=True)


def _show_snapshot(image: Image, wanted: str) -> None:
    """Read a snapshot's L1 table instead of the current one."""
    from tap_qcow2.ondisk.snapshottable import find_snapshot, read_snapshots, snapshot_l1

    snapshot = find_snapshot(read_snapshots(image.file, image.header), wanted)
    l1 = snapshot_l1(image.file, image.header, snapshot)
    image.tables.show(l1, snapshot.l1_offset)
    if snapshot.disk_size is not None:
        image.size = snapshot.disk_size >> SECTOR_SHIFT << SECTOR_SHIFT
    if image.geometry.l1_entries(image.size) > len(l1):
        raise ImageFormatError(f"has a snapshot '{wanted}' with an L1 table that is too small")


def _prepare_for_writing(image: Image) -> None:
    """Repair what was not closed; forget features that tell others to be careful with us."""
    header = image.header
    if image.dd.options.metadata_only:
        return
    if header.dirty:
        from tap_qcow2.check.check import repair_dirty

        log.warning("%s: was not closed; its refcounts are being repaired", image.dd.name)
        if image.dd.options.missing == "zeroes":
            make_holes_of_lost(image, image.clusters.disk.content.bytes_there)
        repair_dirty(image)
    if header.autoclear & ~layout.AUTOCLEAR_KNOWN:
        header.autoclear &= layout.AUTOCLEAR_KNOWN
        image.header_writer.write_fields()
    if header.extension(layout.EXT_BITMAPS) is not None:
        from tap_qcow2.bitmaps.tracker import wants_tracker

        if wants_tracker(image.metadata):
            image.track_bitmaps()
