"""Opening a host file that is there: a regular file or block device, and nothing else."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from tapcore.errors import ImageOpenError, NotWritableError, describe
from tapcore.files.hostfile import check_kind, kind_error, refuse_read_only_device
from tapcore.files.lent import borrowed
from tapcore.files.noting import note
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.identity import identity_of

_FORBIDDEN: Final = (errno.EACCES, errno.EROFS, errno.EPERM)  # the last: chattr +i


def open_existing(path: str, flags: int, bound: BoundFile | None = None) -> int:
    """Open a regular file or block device; or have it opened, where this process may not.

    Args:
        path: resolved and allowed.
        flags: `os.O_*` access mode and more; O_CLOEXEC is added.
        bound: the file that the path led to when it was judged: that one is opened.

    Raises:
        ImageOpenError: what the file is, or what the system says.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to must not hang
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = _opened(path, flags, bound)
    except OSError as exc:
        raise open_refused(exc, path, flags) from None
    try:
        check_kind(fd, path)
        if flags & os.O_RDWR:
            refuse_read_only_device(fd, path)
        note(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _opened(path: str, flags: int, bound: BoundFile | None) -> int:
    try:
        return bound.open(flags) if bound is not None else os.open(path, flags)
    except OSError as exc:
        which = bound.identity if bound is not None else identity_of(path)
        lent = borrowed(exc, which, flags)
        if lent is None:
            raise
        return lent


def open_refused(exc: OSError, path: str, flags: int) -> ImageOpenError:
    """What to raise where the system does not open a file.

    Args:
        exc: what it says.
        path: of the file.
        flags: with which it was to be opened.

    Raises:
        ReadOnlyDeviceError: it is a block device that cannot be written.
    """
    if exc.errno in _FORBIDDEN and flags & os.O_RDWR:
        refuse_read_only_device(path, path)
    if exc.errno in _FORBIDDEN and os.access(path, os.R_OK):
        return NotWritableError(f"{describe(exc)} for writing", image=path, errno=exc.errno)
    return ImageOpenError(_why(path, exc), image=path, errno=exc.errno)


def _why(path: str, exc: OSError) -> str:
    if exc.errno == errno.ESTALE:
        return "was replaced while it was being opened"
    if exc.errno == errno.EISDIR:
        return kind_error(stat.S_IFDIR, path).message
    if exc.errno == errno.ENXIO:
        return kind_error(stat.S_IFSOCK, path).message
    return describe(exc)
