"""How people name images and sizes: `[HANDLE:]PATH`, `10G`, `+512M`."""

from __future__ import annotations

import os
import re
from operator import index
from typing import TypeAlias

from tapcore.constants import DEFAULT_SECTOR_SIZE, MAX_DISK_SECTORS
from tapcore.errors import UnknownHandleError, UsageError
from tapcore.models import DiskId, DiskInfo
from tapcore.registry import Registry

ImageName: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""`[HANDLE:]PATH`, as text, as the bytes of a file's name, or as a path, which means what its text
says."""

RAW_HANDLES = ("aio", "sync")
"""Handles for a file that no driver recognises, the first one installed; a convention of names:
the core knows no format."""

RAW_FORMAT = "raw"
"""What image formats record as the format of a raw parent."""

RAW_SUFFIXES = (".img", ".raw")

_PROTOCOLS = (
    *("fd", "file", "ftp", "ftps", "host_cdrom", "host_device", "http", "https"),
    *("iscsi", "json", "nbd", "nfs", "nvme", "rbd", "sftp", "ssh"),
)
"""What qemu-img takes before a colon, and is no format."""

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(\d{1,20})(?:\.(\d{1,9}))?([BKMGTP]?)", re.IGNORECASE | re.ASCII)
_HANDLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes from `4096`, `64K`, `1.5T`.

    Args:
        text: a number, with a fraction only where a unit of 1024 and more follows.

    Raises:
        UsageError: not a size, or larger than a disk can be.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size (examples: 4096, 64K, 10G, 1.5T)")
    whole, fraction, unit = match.groups()
    factor = _UNITS[unit.upper()]
    if fraction and factor == 1:
        raise UsageError(f"'{text}' is not a whole number of bytes")
    size = int(whole) * factor
    if fraction:
        size += int(fraction) * factor // 10 ** len(fraction)
    return _possible(size, text)


def disk_size(text: str) -> int:
    """A virtual disk's size in bytes: as `parse_size`, rounded up to whole sectors."""
    return _possible(round_up_to_sector(parse_size(text)), text)


def _possible(size: int, text: str) -> int:
    if size > MAX_DISK_SECTORS * DEFAULT_SECTOR_SIZE:
        raise UsageError(f"'{text}' is larger than a disk can be (8 EiB less 512 bytes)")
    return size


def checked_size(size: int, image: str) -> int:
    """A virtual disk's size in bytes that a program gives, as it is.

    Raises:
        UsageError: no disk can have it.
        TypeError: it is no whole number.
    """
    size = index(size)
    if size <= 0:
        raise UsageError("a disk needs at least one sector (512 bytes)", image=image)
    if size % DEFAULT_SECTOR_SIZE:
        raise UsageError("a size must be a multiple of 512 bytes", image=image)
    try:
        return _possible(size, str(size))
    except UsageError as exc:
        exc.image = image
        raise


def round_up_to_sector(size: int) -> int:
    """Bytes, rounded up to a multiple of 512."""
    return -(-size // DEFAULT_SECTOR_SIZE) * DEFAULT_SECTOR_SIZE


def changed_size(text: str, current: int) -> int:
    """The new size (bytes) that `SIZE`, `+N` or `-N` means for a disk of `current` bytes."""
    if text.startswith("+"):
        return _possible(round_up_to_sector(current + parse_size(text[1:])), text)
    if text.startswith("-"):
        return max(round_up_to_sector(current - parse_size(text[1:])), 0)
    return disk_size(text)


def format_size(size: int) -> str:
    """Bytes for a person: `512 B`, `64 KiB`, `1.5 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def split_name(name: ImageName, registry: Registry) -> DiskId:
    """`[HANDLE:]PATH` into its parts.

    A prefix that no driver has and that is not part of an existing file's name is an error, so
    that a typing error does not become a file's name.

    Args:
        name: as the user gave it.
        registry: what is installed.

    Returns:
        The name, with an empty `drivertype` where no handle was given.
    """
    text = os.fsdecode(name)
    if not text:
        raise UsageError("an image's name must not be empty")
    if "\0" in text:
        raise UsageError("an image's name must not contain a NUL", image=text)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError("no file can have this name", image=text) from None
    head, colon, rest = text.partition(":")
    if not colon or not _HANDLE.fullmatch(head):
        return DiskId(text)
    if registry.knows(head):
        registry.get(head)
        if not rest:
            raise UsageError(f"'{text}' names no image after the handle")
        return DiskId(rest, head)
    if os.path.lexists(text):
        return DiskId(text)
    if head == RAW_FORMAT and rest:
        return DiskId(rest, raw_handle(registry))
    if rest.startswith("//") or head in _PROTOCOLS:
        text = "is no file's name: images are files and block devices, and URLs are not followed"
        raise UsageError(text, image=f"{head}:{rest}")
    try:
        registry.get(head)
    except UnknownHandleError as exc:
        exc.image = text
        raise
    raise AssertionError("unreachable")


def plain_name(name: str) -> str:
    """A file's name as it is to be recorded in an image: `b-10:00.img` as `./b-10:00.img`.

    QEMU takes what stands before a colon for a protocol, unless a slash comes first.
    """
    head = name.partition("/")[0]
    return f"./{name}" if ":" in head else name


def as_handles(recorded: DiskId, registry: Registry) -> DiskId:
    """A parent as an image records it, in this registry's handles.

    Images made elsewhere call every raw file's format `raw`, and may carry the format as a prefix
    of the name (`qcow2:base.qcow2`), where there is no other place for it.

    Args:
        recorded: what `td_get_parent_id` said.
        registry: what is installed.
    """
    handle, name = recorded.drivertype, recorded.name
    if not handle:
        head, colon, rest = name.partition(":")
        if colon and rest and (head == RAW_FORMAT or registry.knows(head)):
            handle, name = head, rest
    return DiskId(name, raw_handle(registry) if handle == RAW_FORMAT else handle)


def raw_handle(registry: Registry) -> str:
    """The handle for raw files: `aio`, or `sync` where tap-aio is not installed."""
    for handle in RAW_HANDLES:
        if handle in registry:
            return handle
    raise UnknownHandleError("no driver for raw files is installed: pip install tap-aio")


def handle_for_new(disk_id: DiskId, registry: Registry) -> DiskInfo:
    """The driver for an image that is to be made, from its handle or its file's suffix.

    Raises:
        UsageError: neither says it; the text names the handles.
    """
    if disk_id.drivertype:
        return registry.get(disk_id.drivertype)
    suffix = os.path.splitext(disk_id.name)[1].lower()
    if suffix in RAW_SUFFIXES:
        return registry.get(raw_handle(registry))
    for info in registry.drivers():
        if suffix and suffix in info.suffixes:
            return info
    from tapcore.formats import suffix_owner

    owner = suffix_owner(disk_id.name)
    if owner is not None and owner.image:
        remedy = f": pip install {owner.distribution}" if owner.handle else ""
        text = f"has the name of {owner.name}, and no driver for that is installed{remedy}"
        raise UsageError(text, image=disk_id.name)
    makers = [info.handle for info in registry.drivers() if "create" in info.capabilities]
    handles = ", ".join(makers) or "no driver that can create images is installed"
    raise UsageError(
        f"cannot tell the format of a new image from its name; write HANDLE:PATH "
        f"(handles: {handles})",
        image=disk_id.name,
    )
