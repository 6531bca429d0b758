"""How people name images: `[HANDLE:]PATH`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from tapcore.errors import UnknownHandleError, UsageError
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.options import DiskId
from tapcore.interface.policy import has_protocol
from tapcore.interface.registry import Registry

ImageName: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""`[HANDLE:]PATH`, as text, as the bytes of a file's name, or as a path, which means what its text
says."""

RAW_HANDLES = ("aio", "sync")
"""Handles for a file that no driver recognises, the first one installed; a convention of names:
the core knows no format."""

RAW_FORMAT = "raw"
"""What image formats record as the format of a raw parent."""

STANDARD: Final = "-"
"""The name of standard input or output; a file of that name is `./-`."""

RAW_SUFFIXES = (".img", ".raw")

_PROTOCOLS = (
    *("fd", "file", "ftp", "ftps", "host_cdrom", "host_device", "http", "https"),
    *("iscsi", "json", "nbd", "nfs", "nvme", "rbd", "sftp", "ssh"),
)
"""What qemu-img takes before a colon, and is no format."""

_HANDLE = r"[A-Za-z_][A-Za-z0-9_]*"


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
    if not colon or not re.fullmatch(_HANDLE, head, re.ASCII):
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

    Other programs would take that for something else than a file's (`has_protocol`).
    """
    return f"./{name}" if has_protocol(name) else name


def recorded_name(given: DiskId, registry: Registry) -> str:
    """A disk's name as it is to be recorded in an image: a file's by `plain_name`."""
    return given.name if split_below(given, registry) else plain_name(given.name)


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


def split_below(disk_id: DiskId, registry: Registry) -> tuple[str, str] | None:
    """The name of a disk that lies on another image: what stands before that image's, and that.

    Args:
        disk_id: with its handle.
        registry: what is installed.

    Returns:
        None where it lies on none, or the words before the image are not there.
    """
    words = registry.get(disk_id.drivertype).words_before_image if disk_id.drivertype else None
    if words is None:
        return None
    parts = disk_id.name.split(":", words)
    if len(parts) <= words:
        return None
    return "".join(f"{word}:" for word in parts[:words]), parts[words]


def beside(image: str, named: DiskId, registry: Registry) -> str:
    """A disk's name, if its file is relative to the directory of an image.

    Args:
        image: path.
        named: as it is written there.
        registry: what is installed.
    """
    inner = split_below(named, registry)
    if inner is None:
        return os.path.join(os.path.dirname(image), named.name)
    below = split_name(inner[1], registry)
    front = f"{below.drivertype}:" if below.drivertype else ""
    return f"{inner[0]}{front}{beside(image, below, registry)}"


def raw_handle(registry: Registry) -> str:
    """The handle for raw files: `aio`, or `sync` where tap-aio is not installed."""
    for handle in RAW_HANDLES:
        if handle in registry:
            return handle
    raise UnknownHandleError("no driver for raw files is installed: pip install tap-aio")


def names_disk(name: str, registry: Registry) -> bool:
    """Whether a name that stands behind a handle is that of another disk, and no file's."""
    handle, colon, rest = name.partition(":")
    return bool(colon and rest and registry.knows(handle)) and not os.path.lexists(name)


def has_suffix(path: str, suffixes: Iterable[str]) -> bool:
    """Whether a file's name ends so, capitals or not, and is more than that.

    Args:
        path: of the file.
        suffixes: each with its dot, perhaps with several (".raw.zst"); in small letters.
    """
    name = os.path.basename(path).lower()
    return any(name.endswith(suffix) and name.strip(".") != suffix[1:] for suffix in suffixes)


def handle_for_new(disk_id: DiskId, registry: Registry) -> DiskInfo:
    """The driver for an image that is to be made, from its handle or its file's suffix.

    Raises:
        UsageError: neither says it; the text names the handles.
    """
    if disk_id.drivertype:
        return registry.get(disk_id.drivertype)
    if has_suffix(disk_id.name, RAW_SUFFIXES):
        return registry.get(raw_handle(registry))
    for info in registry.drivers():
        if has_suffix(disk_id.name, info.suffixes):
            return info
    from tapcore.formats.foreign import suffix_owner

    owner = suffix_owner(disk_id.name)
    if owner is not None and owner.handle and registry.knows(owner.handle):
        _say_what_is_wrong(owner.handle, disk_id.name, registry)
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


def _say_what_is_wrong(handle: str, name: str, registry: Registry) -> None:
    """Of a driver that is installed and cannot be used."""
    try:
        registry.get(handle)
    except UnknownHandleError as exc:
        exc.image = name
        raise
