"""`qcow_create`, with the arguments that blktap's function of this name had."""

from __future__ import annotations

import os
from typing import Final

import tapcore
from tap_qcow import layout
from tap_qcow.create import check_size, l1_end, write_image
from tap_qcow.header import HEADER, Header, encode_name
from tap_qcow.xen import EXTENSION, XEN_PAGE, XEN_SPARSE, XenExtension, xen_checksum
from tapcore import SECTOR_SHIFT

_NAME_OFFSET: Final = HEADER.size + EXTENSION.size


def qcow_create(filename: str, total_size: int, backing_file: str | None, flags: int) -> int:
    """Make an image as blktap's programs made them: with their header, and the L1 table at a page.

    Args:
        filename: the new image; what is there is replaced.
        total_size: of the disk, bytes, taken as whole sectors; with a parent, its size counts.
        backing_file: the parent, which must exist; recorded with its real path. None, "" or
            "fat:": none.
        flags: not 0: sparse. 0: the file is as long as if the disk were full.

    Returns:
        0, as the original did.

    Raises:
        OSError, TapError: where the original returned -1; nothing is left behind.
    """
    mtime = 0
    name = ""
    if backing_file and backing_file != "fat:":
        name = backing_file
        if ":" not in name[2:]:
            name = os.path.realpath(name)
            mtime = int(os.stat(name).st_mtime) & 0xFFFF_FFFF
        with tapcore.open(name, readonly=True, parents="any") as parent:
            total_size = parent.size
    size = check_size(total_size >> SECTOR_SHIFT << SECTOR_SHIFT)
    geometry = layout.CHILD if name else layout.STANDALONE
    end = _NAME_OFFSET + len(encode_name(name))
    header = Header(
        geometry,
        size,
        l1_offset=-(-end // XEN_PAGE) * XEN_PAGE,
        backing_file=name,
        backing_offset=_NAME_OFFSET if name else 0,
        mtime=mtime,
    )
    header.xen = XenExtension(
        checksum=xen_checksum(bytes(header.l1_bytes)),
        min_cluster_alloc=1 if name else geometry.entry_mask + 1,
        flags=XEN_SPARSE if flags else 0,
    )
    length = l1_end(header, XEN_PAGE)
    if not flags:
        length += 512 * geometry.l1_entries(size) + size  # what the original reckoned with
    write_image(filename, header, length)
    return 0
