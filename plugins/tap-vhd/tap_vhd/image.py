"""An open image, of either kind."""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

from tap_vhd.blocks import BlockImage
from tap_vhd.fixed import FixedImage
from tap_vhd.footer import FIXED
from tap_vhd.footers import read_footers
from tap_vhd.header import read_header
from tapcore import DiskDriver, ImageFile
from tapcore.clusters import NotForDirect, open_mapped

log = logging.getLogger(__name__)

Image: TypeAlias = FixedImage | BlockImage


def open_image(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """As `td_open`. Blocks lie at any sector, and footers behind them: not made for O_DIRECT."""
    open_mapped(dd, name, flags, _image)


def _image(dd: DiskDriver[Any], file: ImageFile) -> Image:
    if file.direct:
        raise NotForDirect("a VHD is not laid out for O_DIRECT")
    footers = read_footers(file.read_metadata, file.size)
    if footers.damage:
        log.warning("%s: %s", file.path, footers.damage)
    footer = footers.footer
    if footer.disk_type == FIXED:
        return FixedImage(dd, file, footers)
    header = read_header(file.read_metadata, footer.data_offset, footer.sectors, file.size)
    return BlockImage(dd, file, footers, header)
