"""Making images, laid out as VirtualBox does it: map and blocks begin at whole MiB."""

from __future__ import annotations

import logging
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from uuid import uuid4

import attrs

from tap_vdi.blockmap import CODING, PAGE_SHIFT
from tap_vdi.header import (
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    LARGEST_BLOCK,
    MOST_BLOCKS,
    NOTHING,
    Header,
)
from tap_vdi.parents import new_parent
from tapcore import (
    SECTOR_SHIFT,
    DiskId,
    Measurement,
    NotSupportedError,
    UsageError,
    create_host_file,
    open_host_file,
    parse_size,
    remove_host_file,
)

ALIGNMENT: Final = 1 << 20
SMALLEST_BLOCK: Final = 4 << 10
DEFAULT_BLOCK: Final = "1M"
_VIRTUALBOX: Final = (128 << 10, 128 << 20)
"""Smallest and largest block of the VDIs that VirtualBox 7.2 opens, as tried."""

log = logging.getLogger(__name__)


def create(name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]) -> None:
    """Make an image; arguments as of the hook.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    if os.path.exists(name) and stat.S_ISBLK(os.stat(name).st_mode):
        raise NotSupportedError("a new VDI needs a file, not a device")
    fixed = options.get("subformat", "dynamic") == "fixed"
    block = _block_size(options)
    if parent is None:
        write_image(name, new_header(size, block, FIXED if fixed else DYNAMIC))
        return
    if fixed:
        raise UsageError("a fixed VDI cannot have a parent")
    below = new_parent(os.path.dirname(os.path.realpath(name)), parent)
    header = new_header(below.disk_size if size is None else size, block, DIFFERENCING)
    header = attrs.evolve(header, parent=below.id, parent_modified=below.modified)
    write_image(name, header)


def _block_size(options: Mapping[str, str]) -> int:
    size = parse_size(options.get("block_size", "") or DEFAULT_BLOCK)
    if size & (size - 1) or not SMALLEST_BLOCK <= size <= LARGEST_BLOCK:
        raise UsageError("block_size is a power of two from 4K to 256M")
    if not _VIRTUALBOX[0] <= size <= _VIRTUALBOX[1]:
        log.warning("VirtualBox opens no VDI in blocks of %d KiB: 128 KiB to 128 MiB", size >> 10)
    return size


def new_header(size: int | None, block: int, disk_type: int) -> Header:
    """The header of a new image.

    Args:
        size: of the disk, bytes.
        block: of a block, bytes.
        disk_type: `DYNAMIC`, `FIXED` or `DIFFERENCING`, whose parent is not in it yet.

    Raises:
        UsageError: there cannot be such a disk.
    """
    if size is None:
        raise UsageError("a new image needs a size (for example 10G)")
    size = size >> SECTOR_SHIFT << SECTOR_SHIFT
    blocks = -(-size // block)
    if not 0 < blocks <= MOST_BLOCKS:
        text = f"a VDI in blocks of {block >> 10} KiB has from 512 bytes"
        raise UsageError(f"{text} to {MOST_BLOCKS * block >> 30} GiB")
    return Header(
        disk_type=disk_type,
        disk_size=size,
        block_size=block,
        blocks=blocks,
        stored=blocks if disk_type == FIXED else 0,
        map_at=ALIGNMENT,
        data_at=ALIGNMENT + (4 * blocks + ALIGNMENT - 1 & -ALIGNMENT),
        id=uuid4(),
        modified=uuid4(),
        parent=NOTHING,
    )


def file_size(header: Header, stored: int) -> int:
    """How long a file is with so many blocks, bytes."""
    return header.data_at + stored * header.place_bytes


def write_image(name: str, header: Header) -> None:
    """Make the file of a new image.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    create_host_file(name, file_size(header, header.stored))
    try:
        with os.fdopen(open_host_file(name, writing=True), "r+b") as file:
            file.write(header.pack())
            file.seek(header.map_at)
            for page in _pages(header):
                file.write(page)
    except BaseException:
        remove_host_file(name)
        raise


def _pages(header: Header) -> Iterator[bytes]:
    """The block map: each block in its order, or none."""
    for first in range(0, header.blocks, 1 << PAGE_SHIFT):
        count = min(header.blocks - first, 1 << PAGE_SHIFT)
        if header.disk_type == FIXED:
            yield CODING.encode(array("I", range(first, first + count)))
        else:
            yield b"\xff" * (4 * count)


def measure(size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]) -> Measurement:
    """How large an image without a parent is that holds data; arguments as of the hook."""
    fixed = options.get("subformat") == "fixed"
    header = new_header(size, _block_size(options), FIXED if fixed else DYNAMIC)
    blocks = following = 0
    for start, length in data:
        if length:
            first, last = start // header.block_size, (start + length - 1) // header.block_size
            blocks += last + 1 - max(first, following)
            following = last + 1
    most = file_size(header, header.blocks)
    return Measurement(most if fixed else file_size(header, blocks), most)
