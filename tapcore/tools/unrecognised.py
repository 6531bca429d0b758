"""Files that are served as raw disks because nobody knows better, and show no sign of being one."""

from __future__ import annotations

import logging
import os

from tapcore.errors import TapError
from tapcore.files.byname import open_host_fd
from tapcore.formats.foreign import plain_disk, read_sample, what_it_says_it_is
from tapcore.interface.registry import Registry
from tapcore.opening.names import RAW_FORMAT, RAW_HANDLES, RAW_SUFFIXES, ImageName, has_suffix
from tapcore.tools.givennames import given_image

log = logging.getLogger(__name__)


def warn_of_unrecognised(name: ImageName, handle: str, registry: Registry) -> None:
    """Say of a text file that it is about to be a disk; a disk that is empty says nothing either.

    Args:
        name: of the image, as it was given.
        handle: of the driver that it was opened with.
        registry: the drivers that were asked.
    """
    if is_unrecognised(name, handle, registry):
        tell_of_unrecognised(given_image(name, registry).name)


def is_unrecognised(name: ImageName, handle: str, registry: Registry) -> bool:
    """Whether it should be said; arguments as `warn_of_unrecognised`."""
    given = given_image(name, registry)
    path = given.name
    if given.drivertype or handle not in RAW_HANDLES or has_suffix(path, RAW_SUFFIXES):
        return False
    try:
        fd = open_host_fd(path, os.O_RDONLY)
        try:
            sample = read_sample(fd)
        finally:
            os.close(fd)
    except (TapError, OSError):
        return False  # it is open already, and whoever reads it is told
    if sample.device or what_it_says_it_is(sample) or plain_disk(sample):
        return False
    return bool(sample.head.strip(b"\0"))


def tell_of_unrecognised(path: str) -> None:
    """Say it, of a file."""
    log.warning(
        "%s: is of no format that is known here, and is served as a raw disk (%s:PATH says that "
        "it is one)",
        path,
        RAW_FORMAT,
    )
