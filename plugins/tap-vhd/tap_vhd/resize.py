"""Changing a disk's size."""

from __future__ import annotations

from typing import Any

import attrs

from tap_vhd.blocks import BlockImage
from tap_vhd.create import LARGEST, as_ours
from tap_vhd.fixed import FixedImage
from tap_vhd.footer import (
    BY_GEOMETRY,
    DIFFERENCING,
    FOOTER_BYTES,
    TAPDISK,
    Footer,
    geometry_of,
)
from tap_vhd.restructure import restructure
from tapcore import SECTOR_SHIFT, DiskDriver, NotSupportedError, UsageError


def resize(dd: DiskDriver[Any], size: int) -> None:
    """As `td_resize`.

    Raises:
        UsageError: no VHD can be so large.
        NotSupportedError: it would grow, and its parent's content would show.
        OSError, TapError: it is as it was, or has the new size.
    """
    if not 0 < size <= LARGEST:
        raise UsageError(f"a VHD has from 512 bytes to {LARGEST >> 30} GiB")
    image = dd.private
    footer = _resized(image.footers.footer, size)
    if isinstance(image, FixedImage):
        _resize_fixed(image, footer, size)
    else:
        _refuse_longer_parent(dd, image, size >> SECTOR_SHIFT)
        _resize_blocks(image, footer, size)
    dd.size = image.sectors


def _refuse_longer_parent(dd: DiskDriver[Any], image: BlockImage, sectors: int) -> None:
    """There is no way to say that sectors are zeroes but to store all of them."""
    if sectors <= image.sectors or image.footers.footer.disk_type != DIFFERENCING:
        return
    if dd.next is None or dd.next.size > image.sectors:
        raise NotSupportedError("cannot grow: the rest of its parent, which is longer, would show")


def _resized(footer: Footer, size: int) -> Footer:
    """With another size, to the sector: by geometry it could not be told.

    XenServer would look for a map of full blocks behind the new block table.
    """
    geometry = geometry_of(size >> SECTOR_SHIFT)
    footer = attrs.evolve(footer, current_size=size, geometry=geometry)
    return as_ours(footer) if footer.creator in (*BY_GEOMETRY, TAPDISK) else footer


def _resize_fixed(image: FixedImage, footer: Footer, size: int) -> None:
    """The footer goes to the new end first, so that there is always one."""
    file, before = image.file, image.footers.at
    file.write_metadata(size, footer.pack())
    file.make_safe()
    if size > before:
        length = min(FOOTER_BYTES, size - before)
        if res := file.zero_blocking(before, length, True):
            raise OSError(-res, "the old footer cannot be cleared")
    else:
        file.resize(size + FOOTER_BYTES)
    file.make_safe()
    image.footers = attrs.evolve(image.footers, footer=footer, at=size)
    image.sectors = size >> SECTOR_SHIFT


def _resize_blocks(image: BlockImage, footer: Footer, size: int) -> None:
    """With a block table as long as is needed, behind all blocks."""
    sectors = size >> SECTOR_SHIFT
    if sectors > image.sectors:
        image.clear_behind()
    header = attrs.evolve(image.header, entries=image.header.entries_for(sectors))
    restructure(image, footer, header, table=image.table_for(header.entries))
