"""Opening an image."""

from __future__ import annotations

import logging
from typing import Any, Final

from tap_vdi.header import DIFFERENCING, NOTHING, read_header
from tap_vdi.image import Image
from tapcore import DiskDriver, ImageFile
from tapcore.clusters import NotForDirect, open_mapped

log = logging.getLogger(__name__)

_PAGE: Final = 4096


def open_image(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """As `td_open`; what QEMU has made is not for O_DIRECT: its first block shares a page with the
    table, which goes through the page cache, and what meets there may be lost."""
    open_mapped(dd, name, flags, _image)


def _image(dd: DiskDriver[Any], file: ImageFile) -> Image:
    header = read_header(file.read_metadata, file.size)
    places = header.where(0) | header.place_bytes
    if file.direct and places & (max(file.sector_size, _PAGE) - 1):
        raise NotForDirect("is not laid out for O_DIRECT")
    if header.disk_type != DIFFERENCING and header.parent != NOTHING:
        log.warning("%s: names a parent, but is not a differencing image", file.path)
    return Image(dd, file, header)
