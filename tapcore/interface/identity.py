"""Which file it is: two names are of one file where device and inode are the same."""

from __future__ import annotations

import os
from typing import TypeAlias

Identity: TypeAlias = tuple[int, int]
"""Device and inode of a file."""


def identity_in(status: os.stat_result) -> Identity:
    """Which file the system has told of."""
    return status.st_dev, status.st_ino


def identity_of(path: str, *, follow: bool = True) -> Identity | None:
    """Which file a path leads to; None where there is none, or it cannot be looked at.

    Args:
        path: of the file.
        follow: False: the path's own last entry, a symbolic link as itself.
    """
    try:
        return identity_in(os.stat(path, follow_symlinks=follow))
    except OSError:
        return None


def identity_of_open(fd: int) -> Identity:
    """Which file a descriptor is of."""
    return identity_in(os.fstat(fd))


def same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file, which exists."""
    found = identity_of(one)
    return found is not None and found == identity_of(other)
