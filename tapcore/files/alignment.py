"""The unit in which a file can be read and written past the page cache."""

from __future__ import annotations

import errno
import os
from typing import Final

from tapcore.buffers import POOL

_SAFE: Final = 4096
"""Bytes; no disk that is sold has larger sectors."""


def direct_alignment(fd: int, sector_size: int) -> int:
    """The smallest unit (bytes) that O_DIRECT accepts here, found by trying, as QEMU does.

    It is tried where the file has data: of a hole the file system does not ask the disk, and takes
    any unit. Of a file that is one hole its device has to tell.

    Args:
        fd: of the file, open with O_DIRECT.
        sector_size: it is no smaller.
    """
    status = os.fstat(fd)
    start = 0
    if not status.st_rdev:
        try:
            start = os.lseek(fd, 0, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return max(_sector_of_device(status.st_dev), sector_size)
    buffer = POOL.take(_SAFE)
    try:
        for size in (512, 1024, 2048):
            if size < sector_size:
                continue
            try:
                # an offset and length of this unit, in memory aligned no better
                os.preadv(fd, (buffer[size : 2 * size],), start + size)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    return _SAFE
                continue
            if status.st_size >= start + 2 * size or status.st_rdev:
                return size
            return _SAFE  # at the end of a file nothing is checked
        return _SAFE
    finally:
        POOL.give(buffer)


def _sector_of_device(number: int) -> int:
    """Bytes of a sector of the device that a file system lies on; a safe unit where none is."""
    device = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    for queue in ("queue", "../queue"):  # of a disk; of a partition
        try:
            with open(f"{device}/{queue}/logical_block_size") as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return _SAFE
