"""Changing a disk's size, so that a crash at any moment loses nothing that is to stay.

One sector of the file, the header's, is what changes the size, and where the map and the blocks
begin. Where the map needs more room than there is before the blocks, the first blocks go behind the
last one, and the new map takes their places.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import attrs

from tap_vdi.blockmap import CODING, FREE, PAGE_SHIFT, ZERO, map_content, stored_blocks
from tap_vdi.header import FIXED, MOST_BLOCKS, Header
from tap_vdi.image import Image, gaps
from tap_vdi.moving import change, cut, move
from tap_vdi.scan import scan
from tapcore import DiskDriver, NotSupportedError, UsageError


def resize(dd: DiskDriver[Any], size: int) -> None:
    """As `td_resize`.

    Raises:
        NotSupportedError: of a differencing image, which shows its parent.
        UsageError: no VDI can be so large.
        ImageFormatError: it is damaged.
        OSError: it is as it was, or what is cut off is zeroes.
    """
    image: Image = dd.private
    header = image.header
    if header.differs:
        raise NotSupportedError("is a differencing VDI, which is as large as its parent: commit it")
    blocks = -(-size // header.block_size)
    if not 0 < blocks <= MOST_BLOCKS:
        most = MOST_BLOCKS * header.block_size >> 30
        raise UsageError(f"this VDI can have from 512 bytes to {most} GiB")
    image.clusters.begin_writing()
    image.clusters.save()
    if size < header.disk_size:
        header = _shrunk(image, blocks)
    else:
        _clear_behind(image)
        header = _grown(image, max(blocks, header.blocks))
    header = attrs.evolve(header, disk_size=size)
    image.file.write_metadata(0, header.change(image.file.read_metadata(0, 512)))
    image.file.make_safe()
    image.adopt(header)
    dd.size = image.sectors


def _clear_behind(image: Image) -> None:
    """What lies behind the end of the disk, in its last block, is to read as zeroes."""
    header, file = image.header, image.file
    last = header.disk_size // header.block_size
    for block, place in stored_blocks(header, file.read_metadata, file.size):
        if block >= last:
            skip = max(header.disk_size - block * header.block_size, 0)
            start, length = header.where(place) + skip, header.block_size - skip
            if length and (res := file.zero_blocking(start, length, True)):
                raise OSError(-res, "what lies behind the disk's end cannot be cleared")


# ---- larger --------------------------------------------------------------------------------------


def _grown(image: Image, blocks: int) -> Header:
    """The header of an image whose map has so many blocks, the map being on disk."""
    header, file = attrs.evolve(image.header, stored=image.stored), image.file
    added = blocks - header.blocks
    if header.map_at + 4 * blocks > header.data_at:
        header = _with_room(image, blocks)
        _write_map(image, header)
    first = header.stored
    if header.disk_type == FIXED:
        header = attrs.evolve(header, stored=first + added)
        file.truncate_up(header.data_at + header.stored * header.place_bytes)
    _write_new(image, header, first, added)
    file.make_safe()
    return attrs.evolve(header, blocks=blocks)


def _with_room(image: Image, blocks: int) -> Header:
    """Give the first blocks other places; a header whose map begins where they were."""
    header, file = image.header, image.file
    count = -(-4 * blocks // header.place_bytes)
    found = scan(header, file)
    end = max(found.end, count)
    moves, target = [], end
    for block, place in stored_blocks(header, file.read_metadata, file.size):
        if place < count:
            moves.append((block, place, target))
            target += 1
    move(header, file, moves, target)
    return attrs.evolve(
        header,
        map_at=header.data_at,
        data_at=header.data_at + count * header.place_bytes,
        stored=target - count,
    )


def _write_map(image: Image, new: Header) -> None:
    """The present map, at its new place; places count from where the blocks begin then."""
    less = (new.data_at - image.header.data_at) // new.place_bytes
    for first, content in map_content(image.header, image.file.read_metadata):
        entries = CODING.decode(content)
        moved = array("I", (each - less if each < ZERO else each for each in entries))
        image.file.write_metadata(new.map_at + 4 * first, CODING.encode(moved))


def _write_new(image: Image, header: Header, place: int, added: int) -> None:
    """Entries of blocks that are added: nothing, or in a fixed image places in their order."""
    for at, count in _pages(added):
        if header.disk_type == FIXED:
            entries = array("I", range(place + at, place + at + count))
        else:
            entries = array("I", [FREE]) * count
        where = header.map_at + 4 * (header.blocks + at)
        image.file.write_metadata(where, CODING.encode(entries))


def _pages(count: int) -> Iterator[tuple[int, int]]:
    for at in range(0, count, 1 << PAGE_SHIFT):
        yield at, min(1 << PAGE_SHIFT, count - at)


# ---- smaller -------------------------------------------------------------------------------------


def _shrunk(image: Image, blocks: int) -> Header:
    """The header of an image with fewer blocks, which lie without gaps at the front."""
    header, file = image.header, image.file
    stored = stored_blocks(header, file.read_metadata, file.size)
    change(header, file, [(block, FREE) for block, _ in stored if block >= blocks])
    found = scan(header, file)
    left = found.used.count(1)
    free = gaps(found.used, left)
    behind = [
        each for each in stored_blocks(header, file.read_metadata, file.size) if each[1] >= left
    ]
    move(header, file, [(block, place, next(free)) for block, place in behind], found.end)
    cut(header, file, left)
    return attrs.evolve(header, blocks=blocks, stored=left)
