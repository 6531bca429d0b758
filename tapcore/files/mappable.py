"""Which host files are read, and written, through windows."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

from tapcore.files.linux import (
    BTRFS_MAGIC,
    EXT4_MAGIC,
    TMPFS_MAGIC,
    XFS_MAGIC,
    file_system_magic,
)

_WORK_WITH: Final = frozenset({TMPFS_MAGIC, EXT4_MAGIC, XFS_MAGIC, BTRFS_MAGIC})
"""File systems of the kernel that are known to map files well. FUSE and network file systems have
pages that others change, and no better way to write than through them; others nobody has tried."""


def maps_well(fd: int) -> bool:
    """Whether it is a regular file on a file system on which windows pay."""
    regular = stat.S_ISREG(os.fstat(fd).st_mode)
    return regular and file_system_magic(fd) in _WORK_WITH


def writes_pay(fd: int) -> bool:
    """Whether small writes are cheaper through a window than by `pwrite`.

    ext4 goes through all the buffers of a folio for each; file systems in memory, XFS and Btrfs do
    not.
    """
    return file_system_magic(fd) == EXT4_MAGIC


def tells_of_pages(fd: int) -> bool:
    """Whether the kernel says truly which pages of a file lie in memory.

    Of a file that the caller neither owns nor may write it says that all do.
    """
    if os.fstat(fd).st_uid == os.geteuid():
        return True
    with suppress(OSError, NotImplementedError):
        return os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)
    return False
