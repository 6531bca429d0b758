"""Making images: header section, log, metadata, block table, and then blocks, at whole MiB each."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from uuid import uuid4

import attrs

from tap_vhdx.bat import CODING, ENTRY_BYTES, PAGE_SHIFT, PRESENT, geometry_of
from tap_vhdx.headers import HEADERS_AT, MIB, Header, identifier
from tap_vhdx.items import LARGEST_BLOCK, LARGEST_DISK, SMALLEST_BLOCK, Disk, pack_region
from tap_vhdx.regions import BAT, METADATA, TABLES_AT, Region, Regions
from tapcore import (
    DiskId,
    Measurement,
    NotSupportedError,
    UsageError,
    create_host_file,
    open_host_file,
    parse_size,
    remove_host_file,
)

DEFAULT_BLOCK: Final = "2M"
LOG_AT: Final = MIB
LOG_BYTES: Final = MIB
METADATA_AT: Final = 2 * MIB
METADATA_BYTES: Final = MIB
BAT_AT: Final = 3 * MIB


def create(name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]) -> None:
    """Make an image; arguments as of the hook.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    if os.path.exists(name) and stat.S_ISBLK(os.stat(name).st_mode):
        raise NotSupportedError("a new VHDX needs a file, not a device")
    if parent is None:
        write_image(name, new_disk(size, options))
        return
    if options.get("subformat", "dynamic") == "fixed":
        raise UsageError("a fixed VHDX cannot have a parent")
    from tap_vhdx.parents import new_parent

    below = new_parent(name, parent)
    disk = new_disk(below.disk.size if size is None else size, options, below.disk.logical)
    write_image(name, attrs.evolve(disk, id=below.disk.id, locator=below.locator))


def new_disk(size: int | None, options: Mapping[str, str], logical: int = 0) -> Disk:
    """A new disk, without a parent.

    Args:
        size: bytes.
        options: as of the hook.
        logical: bytes of a sector of the parent that it is to have; 0: as the options say.

    Raises:
        UsageError: there cannot be such a disk.
    """
    logical = logical or int(options.get("logical_sector", "512"))
    block = parse_size(options.get("block_size", "") or DEFAULT_BLOCK)
    if block & (block - 1) or not SMALLEST_BLOCK <= block <= LARGEST_BLOCK:
        raise UsageError("block_size is a power of two from 1M to 256M")
    if size is None:
        raise UsageError("a new image needs a size (for example 10G)")
    if not 0 < size <= LARGEST_DISK:
        raise UsageError(f"a VHDX has from {logical} bytes to {LARGEST_DISK >> 40} TiB")
    if size % logical:
        raise UsageError(f"its size must be whole sectors of {logical} bytes")
    return Disk(
        size=size,
        block_size=block,
        logical=logical,
        id=uuid4(),
        fixed=options.get("subformat", "dynamic") == "fixed",
    )


def regions_of(disk: Disk) -> Regions:
    """Where things lie in the file of a new disk."""
    length = -(-disk.bat_entries * ENTRY_BYTES // MIB) * MIB
    return Regions(
        Region(BAT, BAT_AT, length, required=True),
        Region(METADATA, METADATA_AT, METADATA_BYTES, required=True),
    )


def file_size(disk: Disk, stored: int) -> int:
    """How long a file is with so many blocks, bytes."""
    return regions_of(disk).bat.end + stored * disk.block_size


def write_image(name: str, disk: Disk) -> None:
    """Make the file of a new image.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    regions = regions_of(disk)
    create_host_file(name, file_size(disk, disk.blocks if disk.fixed else 0))
    header = Header(
        sequence=1,
        file_write=uuid4(),
        data_write=uuid4(),
        log_length=LOG_BYTES,
        log_offset=LOG_AT,
    )
    try:
        with os.fdopen(open_host_file(name, writing=True), "r+b") as file:
            file.write(identifier())
            for number, at in enumerate(HEADERS_AT):
                file.seek(at)
                file.write(attrs.evolve(header, sequence=1 + number).pack())
            for at in TABLES_AT:
                file.seek(at)
                file.write(regions.pack())
            file.seek(METADATA_AT)
            file.write(pack_region(disk))
            if disk.fixed:
                file.seek(BAT_AT)
                for page in _fixed_pages(disk, regions.bat.end):
                    file.write(page)
    except BaseException:
        remove_host_file(name)
        raise


def _fixed_pages(disk: Disk, data_at: int) -> Iterator[bytes]:
    """The block table of a fixed image: each block in its order."""
    geometry, block = geometry_of(disk), disk.block_size
    chunk = 1 << min(geometry.ratio_shift, PAGE_SHIFT)
    for first in range(0, geometry.blocks, chunk):
        count = min(chunk, geometry.blocks - first)
        start = data_at + first * block | PRESENT
        yield CODING.encode(array("Q", range(start, start + count * block, block)))
        if (
            first + count < geometry.blocks
            and not (first + count) & (1 << geometry.ratio_shift) - 1
        ):
            yield bytes(ENTRY_BYTES)


def measure(size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]) -> Measurement:
    """How large an image without a parent is that holds data; arguments as of the hook."""
    disk = new_disk(size, options)
    block = disk.block_size
    blocks = following = 0
    for start, length in data:
        if length:
            first, last = start // block, (start + length - 1) // block
            blocks += last + 1 - max(first, following)
            following = last + 1
    most = file_size(disk, disk.blocks)
    return Measurement(most if disk.fixed else file_size(disk, blocks), most)
