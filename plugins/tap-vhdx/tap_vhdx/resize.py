"""Making a disk larger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from tap_vhdx.bat import ENTRY_BYTES, PLACE, PRESENT, STATE
from tap_vhdx.image import Image
from tap_vhdx.items import DISK_SIZE, LARGEST_DISK
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
    if size > LARGEST_DISK or size % disk.logical:
        text = f"a VHDX has up to {LARGEST_DISK >> 40} TiB, in sectors of {disk.logical} bytes"
        raise UsageError(text)
    if size < before.size:
        raise NotSupportedError("is a VHDX, which can only be made larger here: convert it")
    if image.differs:
        raise NotSupportedError("is a differencing VHDX, which keeps its size: convert it")
    if disk.bat_entries * ENTRY_BYTES > image.layout.regions.bat.length:
        raise NotSupportedError(
            "has a block table without room for a disk of that size: convert it"
        )
    image.clusters.begin_writing()
    image.clusters.save()
    _clear_behind(image)
    end = survey(image.pages).end
    if disk.fixed:
        image.file.truncate_up(end + (disk.blocks - before.blocks) * disk.block_size)
    at, _ = before.places[DISK_SIZE]
    writes = list(_entries(image, before.blocks, disk.blocks, end if disk.fixed else 0))
    image.log.commit(writes)
    image.log.commit([(at, size.to_bytes(8, "little"))])
    image.adopt(disk)
    dd.size = image.sectors


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


def _entries(image: Image, first: int, stop: int, place: int) -> Iterator[Write]:
    """What is to be written to the entries of new blocks.

    Args:
        image: that gets them.
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
