"""A new image with all its clusters allocated from the start."""

from __future__ import annotations

import os
import stat
from array import array
from typing import Any, cast

from tap_qcow2.image import Image
from tap_qcow2.ondisk.headerreading import header_of
from tap_qcow2.tables.links import own_table
from tapcore import DiskDriver, OpenOptions, open_image_file

_ZEROES = bytes(1 << 20)


def preallocate(name: str, how: str) -> None:
    """Allocate every cluster of a new image.

    Args:
        name: path of the image, which nobody else uses.
        how: "metadata" (tables only), "falloc" (space reserved), "full" (zeroes written).

    Raises:
        TapError, OSError: it failed.
    """
    # an image that is in no chain, and has no driver's hooks: only its tables are worked on
    dd = DiskDriver(name=name, drv=cast(Any, None), options=OpenOptions())
    file = open_image_file(name, 0, dd.options)
    image = Image(file, header_of(file, dd), dd)  # clusters of a data file need none
    dd.size = image.size >> 9
    try:
        image.begin_change()
        for index in range(image.geometry.l1_entries(image.size)):
            _allocate_table(image, index)
            if image.tables.overfull:
                image.writeback.all_now()
        image.clean()
        if not image.elsewhere:
            on_device = stat.S_ISBLK(os.fstat(image.file.fd).st_mode)
            if on_device or how != "metadata":  # else what a device held would show
                _fill(image, "full" if on_device else how)
    finally:
        image.close()


def _allocate_table(image: Image, index: int) -> None:
    geometry, decoder = image.geometry, image.metadata.decoder
    first = index << geometry.l2_bits
    count = min(1 << geometry.l2_bits, geometry.clusters(image.size) - first)
    table = own_table(image.metadata, index)
    # what nobody wrote would be decrypted
    zero = image.header.crypt_method and not image.header.extended_l2
    entries: array[int] = array("Q")
    while len(entries) < count:
        most = count - len(entries)
        if not image.elsewhere:
            taken, got = image.allocator.allocate(most)
        else:
            taken, got = first + len(entries), most
        host = taken << image.cluster_bits
        entry = decoder.zeroes(host) if zero else decoder.plain(host)
        entries.extend(range(entry, entry + (got << image.cluster_bits), geometry.cluster_size))
    # an extended entry has space, but none of its subclusters is valid: what a parent has shows
    table.entries[: count * geometry.words : geometry.words] = entries


def _fill(image: Image, how: str) -> None:
    """Reserve, or write, what the clusters lie in."""
    fd = image.file.fd
    if how == "falloc":
        os.posix_fallocate(fd, 0, image.allocator.end)
        image.file.truncate_up(image.allocator.end)
        return
    for run in image.runs(0, image.sectors):
        where, left = run.where, run.nb_sectors << 9
        while left and where >= 0:
            count = min(left, len(_ZEROES))
            if res := image.file.write_blocking(where, memoryview(_ZEROES)[:count]):
                raise OSError(-res, os.strerror(-res))
            where += count
            left -= count
