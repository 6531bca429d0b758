"""Which parent a differencing image has, and whether one is the same as when it was made."""

from __future__ import annotations

import logging
import os
from typing import Final

from tap_vhd.blocks import BlockImage
from tap_vhd.fixed import FixedImage
from tap_vhd.footer import COOKIE, DIFFERENCING, EPOCH, FOOTER_BYTES, Footer
from tap_vhd.footers import read_footers
from tap_vhd.image import Image
from tapcore import (
    TD_RDONLY,
    DiskDriver,
    DiskId,
    ImageFormatError,
    OpenOptions,
    open_image_file,
)

log = logging.getLogger(__name__)


RAW: Final = bytes(16)
"""The id of a parent that is no VHD: `vhd-util snapshot -m` makes children of raw disks."""


def recorded_parent(image: Image) -> DiskId | None:
    """The name to go by, and its format; None for an image that stands alone.

    Raises:
        ImageFormatError: it has a parent, and no name of it.
    """
    if isinstance(image, FixedImage) or image.footers.footer.disk_type != DIFFERENCING:
        return None
    if not image.parents:
        raise ImageFormatError("has a parent, but does not say where it is")
    return DiskId(image.parents[0], "raw" if image.header.parent_id == RAW else "vhd")


def time_stamp(path: str) -> int:
    """When a file was changed last, as a VHD says it: seconds since 2000."""
    return max(int(os.stat(path).st_mtime) - EPOCH, 0) & 0xFFFFFFFF


def identity_of(path: str) -> tuple[Footer, int]:
    """The footer of an image that is to be a parent, and its time stamp.

    Raises:
        OSError, TapError: it cannot be read, or is no VHD.
    """
    file = open_image_file(path, TD_RDONLY, OpenOptions())
    try:
        return read_footers(file.read_metadata, file.size).footer, time_stamp(path)
    finally:
        file.close()


def check_parent(child: Image, parent: DiskDriver) -> None:
    """Compare a parent with what its child has recorded.

    The unique id tells one image from another (specification, Dynamic Disk Header Format). The
    time stamp changes with a copy of the file, too, and so proves nothing.

    Raises:
        ImageFormatError: it is another image.
    """
    if isinstance(child, BlockImage) and child.header.parent_id == RAW:
        _check_raw(parent)
        return
    image = parent.private
    if not isinstance(image, FixedImage | BlockImage):
        raise ImageFormatError("has a parent that is not a VHD")
    if isinstance(child, FixedImage):
        return
    wanted, found = child.header.parent_id, image.footers.footer.unique_id
    if wanted != found:
        text = f"its parent is another image (its id is {found.hex()}, not {wanted.hex()})"
        raise ImageFormatError(text)
    recorded = child.header.parent_time
    if recorded and recorded != time_stamp(image.file.path):
        log.warning("%s: its parent has been changed or copied since", child.file.path)


def _check_raw(parent: DiskDriver) -> None:
    """Nothing tells one raw disk from another; but what is a VHD would be read wrongly."""
    file = open_image_file(parent.name, TD_RDONLY, OpenOptions(locking=False))
    try:
        tail = file.read_metadata(max(file.size - FOOTER_BYTES, 0), FOOTER_BYTES)
    finally:
        file.close()
    if tail.startswith(COOKIE):
        raise ImageFormatError("says that its parent is a raw disk, but that is a VHD")
