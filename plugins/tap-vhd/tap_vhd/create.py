"""Making images.

The size is what was asked for: the creator is one whose images go by the current size wherever they
are read. The geometry is what the specification makes of it, which may be a little less.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import attrs

from tap_vhd.footer import (
    DIFFERENCING,
    DYNAMIC,
    EPOCH,
    FIXED,
    FOOTER_BYTES,
    NO_OFFSET,
    Footer,
    geometry_of,
)
from tap_vhd.header import HEADER_BYTES, LARGEST_BLOCK, Header, Locator
from tap_vhd.parentnames import names_to_record
from tap_vhd.parents import identity_of
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

CREATOR: Final = b"win "
CREATOR_VERSION: Final = 0x000A0000
"""As Hyper-V: all that read VHDs go by the current size then, QEMU among them. A name of its own
would have QEMU go by the geometry, and "tap" would promise a map of full blocks."""

LARGEST: Final = 2040 << 30
"""Bytes of a disk; all that reads VHDs ends there."""
SMALLEST_BLOCK: Final = 512 << 10
DEFAULT_BLOCK: Final = "2M"

HEADER_AT: Final = FOOTER_BYTES
TABLE_AT: Final = HEADER_AT + HEADER_BYTES
Parts: TypeAlias = list[tuple[int, bytes]]
"""What a new file holds: offsets (bytes) and content."""

_AZURE_UNIT: Final = 1 << 20
_SECTOR: Final = 1 << SECTOR_SHIFT
_PAGE: Final = 4096


def _aligned(offset: int, unit: int = _SECTOR) -> int:
    return (offset + unit - 1) & -unit


def create(name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]) -> None:
    """Make an image; arguments as of the hook.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    if os.path.exists(name) and stat.S_ISBLK(os.stat(name).st_mode):
        raise NotSupportedError("a new VHD needs a file, not a device")
    fixed = _is_fixed(options)
    if parent is not None:
        if fixed:
            raise UsageError("a fixed VHD cannot have a parent")
        parts, length = child(name, size, parent, _block_size(options))
    elif fixed:
        parts, length = _fixed(_checked_for(size, options))
    else:
        parts, length = dynamic(_checked(size), _block_size(options))
    write_image(name, parts, length)


def write_image(name: str, parts: Parts, length: int) -> None:
    """Make the file.

    Args:
        name: of it.
        parts: each with its offset, bytes.
        length: of the file, bytes.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    create_host_file(name, length)
    try:
        with os.fdopen(open_host_file(name, writing=True), "r+b") as file:
            for offset, content in parts:
                file.seek(offset)
                file.write(content)
    except BaseException:
        remove_host_file(name)
        raise


def _checked(size: int | None) -> int:
    if size is None:
        raise UsageError("a new image needs a size (for example 10G)")
    if not 0 < size <= LARGEST:
        raise UsageError(f"a VHD has from 512 bytes to {LARGEST >> 30} GiB")
    return size


def _is_fixed(options: Mapping[str, str]) -> bool:
    """Whether an image is to be one.

    Raises:
        UsageError: Azure takes no other.
    """
    subformat = options.get("subformat", "")
    if options.get("azure") != "on":
        return subformat == "fixed"
    if subformat == "dynamic":
        raise UsageError("Azure takes fixed images only: leave out subformat=dynamic")
    return True


def _checked_for(size: int | None, options: Mapping[str, str]) -> int:
    """A size, in whole MiB where Azure is to take it (Azure, Prepare a VHD to upload).

    Raises:
        UsageError: it cannot be.
    """
    size = _checked(size)
    if options.get("azure") == "on" and size % _AZURE_UNIT:
        whole = -(-size // _AZURE_UNIT)
        text = f"Azure takes disks of whole MiB, and this one has {size} bytes"
        raise UsageError(f"{text}: resize it to {whole}M first")
    return size


def _block_size(options: Mapping[str, str]) -> int:
    size = parse_size(options.get("block_size", "") or DEFAULT_BLOCK)
    if size & (size - 1) or not SMALLEST_BLOCK <= size <= LARGEST_BLOCK:
        raise UsageError("block_size is a power of two from 512K to 256M")
    return size


def _new_footer(size: int, disk_type: int) -> Footer:
    return Footer(
        disk_type=disk_type,
        current_size=size,
        original_size=size,
        geometry=geometry_of(size >> SECTOR_SHIFT),
        unique_id=_new_id(),
        data_offset=NO_OFFSET if disk_type == FIXED else HEADER_AT,
        time_stamp=int(time.time()) - EPOCH,
        creator=CREATOR,
        creator_version=CREATOR_VERSION,
    )


def as_ours(footer: Footer) -> Footer:
    """A footer whose image goes by the current size, and has no structures of its creator."""
    return attrs.evolve(footer, creator=CREATOR, creator_version=CREATOR_VERSION)


def _new_id() -> bytes:
    """Random, as RFC 9562 (section 5.4) has it."""
    made = bytearray(os.urandom(16))
    made[6] = made[6] & 0x0F | 0x40
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)


def _fixed(size: int) -> tuple[Parts, int]:
    return [(size, _new_footer(size, FIXED).pack())], size + FOOTER_BYTES


def new_header(size: int, block_size: int) -> Header:
    """The dynamic header of an image without a parent."""
    header = Header(table_offset=TABLE_AT, entries=0, block_size=block_size)
    return attrs.evolve(header, entries=header.entries_for(size >> SECTOR_SHIFT))


def _table_end(header: Header) -> int:
    return _aligned(header.table_offset + 4 * header.entries)


def _with_blocks(footer: Footer, header: Header, end: int) -> tuple[Parts, int]:
    table = b"\xff" * (_table_end(header) - header.table_offset)
    parts = [
        (0, footer.pack()),
        (HEADER_AT, header.pack()),
        (header.table_offset, table),
        (end, footer.pack()),
    ]
    return parts, end + FOOTER_BYTES


def dynamic(size: int, block_size: int) -> tuple[Parts, int]:
    """A dynamic image's parts, and its length; all in bytes."""
    header = new_header(size, block_size)
    return _with_blocks(_new_footer(size, DYNAMIC), header, _table_end(header))


def child(name: str, size: int | None, parent: DiskId, block_size: int) -> tuple[Parts, int]:
    """The same of a differencing image."""
    if parent.drivertype not in ("", "vhd"):
        raise UsageError("the parent of a VHD must be a VHD: it is known by its id")
    folder = os.path.dirname(os.path.realpath(name))
    below, changed = identity_of(os.path.join(folder, parent.name))
    size = _checked(below.sectors << SECTOR_SHIFT if size is None else size)
    header = new_header(size, block_size)
    names, in_header = names_to_record(parent.name, folder)
    end, locators, parts = _table_end(header), [], []
    for platform, content in names:
        locators.append(Locator(platform, end, len(content)))
        parts.append((end, content))
        end = _aligned(end + len(content))
    header = attrs.evolve(
        header,
        parent_id=below.unique_id,
        parent_time=changed,
        parent_name=in_header,
        locators=tuple(locators),
    )
    front, length = _with_blocks(_new_footer(size, DIFFERENCING), header, end)
    return [*front, *parts], length


def measure(size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]) -> Measurement:
    """How large an image without a parent is that holds data; arguments as of the hook."""
    size = _checked_for(size, options)
    if _is_fixed(options):
        return Measurement(size + FOOTER_BYTES, size + FOOTER_BYTES)
    header = new_header(size, _block_size(options))
    blocks = following = 0
    for start, length in data:
        if length:
            first, last = start // header.block_size, (start + length - 1) // header.block_size
            blocks += last + 1 - max(first, following)
            following = last + 1
    return Measurement(_file_size(header, blocks), _file_size(header, header.entries))


def _file_size(header: Header, blocks: int) -> int:
    end = _table_end(header)
    if blocks:
        end = _aligned(end + header.bitmap_bytes, _PAGE) + header.block_size
        end += (blocks - 1) * (_aligned(header.bitmap_bytes, _PAGE) + header.block_size)
    return end + FOOTER_BYTES
