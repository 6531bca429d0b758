"""Recognising what a file holds, for people at a prompt."""

from __future__ import annotations

import os
from collections.abc import Callable

from tapcore.errors import open_error
from tapcore.imagefile.opening import open_host_fd
from tapcore.names import raw_handle
from tapcore.registry import Registry

HEAD_BYTES = 64 << 10
"""How much of a file the drivers are shown."""


def probe(path: str, registry: Registry) -> str:
    """The handle of the driver that recognises a file; the raw one where none does.

    Args:
        path: an existing file or block device.
        registry: the drivers to ask.

    Raises:
        TapError: the file cannot be read, or no driver for raw files is installed.
    """
    try:
        fd = open_host_fd(path, os.O_RDONLY)
        try:
            head = os.pread(fd, HEAD_BYTES, 0)
        finally:
            os.close(fd)
    except OSError as exc:
        raise open_error(exc, path) from None
    return recognise(path, head, registry) or raw_handle(registry)


def recognise(name: str, head: bytes, registry: Registry) -> str:
    """The handle of the first driver that recognises these first bytes, or ""."""
    for info in registry.drivers():
        if info.drv is not None and info.drv.td_probe(name, head):
            return info.handle
    return ""


def first_sector_guard(registry: Registry) -> Callable[[bytes], str]:
    """For a raw image that was found by probing: is this new first sector another format's?

    A guest could otherwise write a header that names a host file, and have it opened the next time
    the image is probed.
    """

    def reason(sector: bytes) -> str:
        handle = recognise("", sector, registry)
        if not handle:
            return ""
        return f"it would make a raw image look like {handle}; name its handle to allow that"

    return reason
