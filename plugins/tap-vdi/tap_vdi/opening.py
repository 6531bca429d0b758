"""Opening an image."""

from __future__ import annotations

import logging
from typing import Any

import attrs

from tap_vdi.header import DIFFERENCING, NOTHING, read_header
from tap_vdi.image import Image
from tapcore import DiskDriver, ImageFile, TapError
from tapcore.clusters import open_mapped

log = logging.getLogger(__name__)


class _Unaligned(TapError):
    """Blocks do not lie where O_DIRECT can read them."""


def open_image(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """As `td_open`; what QEMU has made is laid out for 512-byte sectors, and is not for O_DIRECT
    on others."""
    try:
        open_mapped(dd, name, flags, _image)
    except _Unaligned:
        log.warning("%s: is not laid out for O_DIRECT; using the page cache", name)
        dd.options = attrs.evolve(dd.options, cache="writeback")
        open_mapped(dd, name, flags, _image)


def _image(dd: DiskDriver[Any], file: ImageFile) -> Image:
    header = read_header(file.read_metadata, file.size)
    places = header.where(0) | header.place_bytes
    if file.direct and places & (file.sector_size - 1):
        raise _Unaligned("blocks are not aligned")
    if header.disk_type != DIFFERENCING and header.parent != NOTHING:
        log.warning("%s: names a parent, but is not a differencing image", file.path)
    return Image(dd, file, header)
