"""Image locks that QEMU understands: the two refuse to open each other's images for writing.

QEMU (since 2.10) takes shared OFD locks on single bytes: 100 + n says that permission n is used,
200 + n that others must not use it. A conflict is another's lock on the opposite byte.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import Final

from tapcore.errors import ImageLockedError

_USED: Final = 100
_UNSHARED: Final = 200
_CONSISTENT_READ: Final = 0
_WRITE: Final = 1
_RESIZE: Final = 3
_FORBIDDEN_TO_OTHERS: Final = (_WRITE, _RESIZE)

_FLOCK = struct.Struct("hhqqi")  # struct flock with 64-bit offsets, native alignment


def lock_image(fd: int, *, writing: bool, path: str = "") -> None:
    """Lock an open image file for as long as the file stays open.

    Args:
        fd: the file, open for reading (and writing where `writing`).
        writing: the image will be changed.
        path: the file's name, for the error.

    Raises:
        ImageLockedError: another process, QEMU or tapcore, uses it in a conflicting way. Closing
            `fd` gives back what was locked.
    """
    used = (_CONSISTENT_READ, _WRITE, _RESIZE) if writing else (_CONSISTENT_READ,)
    try:
        for n in used:
            _set_shared(fd, _USED + n)
        for n in _FORBIDDEN_TO_OTHERS:
            _set_shared(fd, _UNSHARED + n)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            return  # a file system without locks: nothing can be promised, as with QEMU
        if exc.errno in (errno.EAGAIN, errno.EACCES):  # somebody locked these bytes for himself
            raise ImageLockedError(_conflict(fd, writing), image=path) from None
        raise
    if any(_held_by_another(fd, _UNSHARED + n) for n in used) or any(
        _held_by_another(fd, _USED + n) for n in _FORBIDDEN_TO_OTHERS
    ):
        raise ImageLockedError(_conflict(fd, writing), image=path)


def unlock_image(fd: int) -> None:
    """Give back what `lock_image` took."""
    everything = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, everything)


def _conflict(fd: int, writing: bool) -> str:
    holder = holder_of(fd)
    by = f" by {holder}" if holder else " by another process"
    return f"is in use{by}" + ("" if writing else " for writing")


def being_written(fd: int) -> bool:
    """Whether another process has the image open for writing; takes no lock."""
    try:
        return _held_by_another(fd, _USED + _WRITE)
    except OSError:
        return False


def _set_shared(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))


def _held_by_another(fd: int, byte: int) -> bool:
    """Would an exclusive lock of the byte fail because of someone else's?"""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def holder_of(fd: int) -> str:
    """Who else holds a lock on the file, as "name (process N)"; empty where it cannot be told.

    OFD locks show no owner in /proc/locks, so the `lock:` lines of /proc/PID/fdinfo are looked at.
    """
    stat = os.fstat(fd)
    major, minor = os.major(stat.st_dev), os.minor(stat.st_dev)
    # where there is no real device (btrfs, overlay, ...) the two places may number it differently
    key = f" {major:02x}:{minor:02x}:{stat.st_ino} " if major else f":{stat.st_ino} "
    own = str(os.getpid())
    if _holds_lock(own, key, except_fd=str(fd)):
        return "this process itself"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid != own and _holds_lock(pid, key):
            try:
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                    return f"{comm.read().strip()} (process {pid})"
            except OSError:
                continue
    return ""


def _holds_lock(pid: str, inode_key: str, *, except_fd: str = "") -> bool:
    try:
        for number in os.listdir(f"/proc/{pid}/fdinfo"):
            if number == except_fd:
                continue
            with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as info:
                if any(line.startswith("lock:") and inode_key in line for line in info):
                    return True
    except OSError:
        return False
    return False
