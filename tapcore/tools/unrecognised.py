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
    given = given_image(name, registry)
    path = given.name
    if given.drivertype or handle not in RAW_HANDLES or has_suffix(path, RAW_SUFFIXES):
        return
    try:
        fd = open_host_fd(path, os.O_RDONLY)
        try:
            sample = read_sample(fd)
        finally:
            os.close(fd)
    except (TapError, OSError):
        return  # it is open already, and whoever reads it is told
    if sample.device or what_it_says_it_is(sample) or plain_disk(sample):
        return
    if sample.head.strip(b"\0"):
        log.warning(
            "%s: is of no format that is known here, and is served as a raw disk (%s:PATH says "
            "that it is one)",
            path,
            RAW_FORMAT,
        )
