"""Recognising what a file holds, for people at a prompt."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from tapcore.boundfile import BoundFile
from tapcore.errors import describe, open_error
from tapcore.imagefile.opening import open_host_fd
from tapcore.models import TapDisk
from tapcore.names import raw_handle
from tapcore.registry import Registry

log = logging.getLogger(__name__)

HEAD_BYTES = 64 << 10
"""How much of a file the drivers are shown."""


def probe(path: str, registry: Registry, bound: BoundFile | None = None) -> str:
    """The handle of the driver that recognises a file; the raw one where none does.

    Args:
        path: an existing file or block device.
        registry: the drivers to ask.
        bound: the file, where it was found before.

    Raises:
        TapError: the file cannot be read, or no driver for raw files is installed.
    """
    try:
        fd = open_host_fd(path, os.O_RDONLY, bound)
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
        if info.drv is not None and _recognises(info.drv, name, head):
            return info.handle
    return ""


def _recognises(drv: TapDisk, name: str, head: bytes) -> bool:
    try:
        return bool(drv.td_probe(name, head))
    except Exception as exc:  # one driver's bug must not keep the others from being asked
        log.warning("the driver %s failed to look at a file: %s", drv.disk_type, describe(exc))
        return False


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
