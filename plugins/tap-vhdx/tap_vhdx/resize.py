"""Changing a disk's size.

All that changes of the structures goes through the log at one stroke, as far as that has room (the
entries of 62 GiB in blocks of 2 MiB): a crash leaves the old size, or the new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from tap_vhdx.bat import ENTRY_BYTES, PLACE, PRESENT, STATE
from tap_vhdx.image import Image
from tap_vhdx.items import DISK_SIZE, LARGEST_DISK, Disk
from tap_vhdx.moving import close_gaps
from tap_vhdx.survey import survey
from tapcore import DiskDriver, NotSupportedError, UsageError
from tapcore.clusters import Write

_PIECE: Final = 64 << 10


def resize(dd: DiskDriver[Any], size: int) -> None:
    """As `td_resize`.

    Raises:
        UsageError: no VHDX can be so large.
        NotSupportedError: this one cannot.
        OSError, TapError: it is as it was, or has the new size.
    """
    image: Image = dd.private
    before = image.layout.disk
    disk = attrs.evolve(before, size=size)
    if not 0 < size <= LARGEST_DISK or size % disk.logical:
        text = f"a VHDX has up to {LARGEST_DISK >> 40} TiB, in sectors of {disk.logical} bytes"
        raise UsageError(text)
    if image.differs:
        raise NotSupportedError("is a differencing VHDX, which keeps its size: convert it")
    if disk.bat_entries * ENTRY_BYTES > image.layout.regions.bat.length:
        raise NotSupportedError(
            "has a block table without room for a disk of that size: convert it"
        )
    image.clusters.begin_writing()
    image.clusters.save()
    if size < before.size:
        _shrink(image, disk)
    else:
        _grow(image, disk)
    dd.size = image.sectors


def _size(image: Image, disk: Disk) -> Write:
    at, _ = image.layout.disk.places[DISK_SIZE]
    return at, disk.size.to_bytes(8, "little")


def _shrink(image: Image, disk: Disk) -> None:
    """Blocks behind the new end are given up, and the file ends behind the last one left."""
    before = image.layout.disk
    image.log.commit([*_entries(image, disk.blocks, before.blocks), _size(image, disk)])
    image.adopt(disk)
    close_gaps(image)


def _grow(image: Image, disk: Disk) -> None:
    before = image.layout.disk
    _clear_behind(image)
    end = survey(image.pages).end
    if disk.fixed:
        image.file.truncate_up(end + (disk.blocks - before.blocks) * disk.block_size)
    image.log.commit(_entries(image, before.blocks, disk.blocks, end if disk.fixed else 0))
    image.log.commit([_size(image, disk)])
    image.adopt(disk)


def _clear_behind(image: Image) -> None:
    """Let what the last block holds behind the disk's end be zeroes."""
    disk = image.layout.disk
    skip = disk.size % disk.block_size
    entry = image.pages.entry(image.pages.geometry.entry(disk.blocks - 1))
    if not skip or entry & STATE != PRESENT:
        return
    place = (entry & PLACE) + skip
    length = disk.block_size - skip
    if res := image.file.zero_blocking(place, length, True):
        raise OSError(-res, "what lies behind the end cannot be cleared")


def _entries(image: Image, first: int, stop: int, place: int = 0) -> Iterator[Write]:
    """What is to be written to the entries of blocks at the disk's end, whether it is to be or was.

    Args:
        image: that has them, or gets them.
        first: of the blocks.
        stop: first one behind them.
        place: where the first one lies, bytes; 0: nothing is stored.
    """
    pages, geometry = image.pages, image.pages.geometry
    block = image.layout.disk.block_size
    at = pages.entry_place(geometry.entry(first - 1) + 1)
    end = pages.entry_place(geometry.entry(stop - 1) + 1)
    while at < end:
        length = min(_PIECE, end - at)
        if any(image.file.read_metadata(at, length)):
            yield at, bytes(length)
        at += length
    if place:
        for number in range(first, stop):
            entry = place + (number - first) * block | PRESENT
            at = pages.entry_place(geometry.entry(number))
            yield at, entry.to_bytes(ENTRY_BYTES, "little")
