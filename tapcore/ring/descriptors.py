"""The descriptors that a front end sends: believed only as far as the kernel vouches for them.

Nothing is asked of one that could make its owner be asked (a file of FUSE answers `fstat` and
`close` when its server likes): the seals come first, which only memory has.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Sequence

from tapcore.files.linux import TMPFS_MAGIC, file_system_magic


class UnusableError(Exception):
    """What was sent cannot be used; the text says why."""


def map_memory(fd: int, length: int) -> memoryview:
    """Memory that a front end has sent, for reading and writing.

    Args:
        fd: of a memfd that cannot shrink (F_SEAL_SHRINK).
        length: bytes, exactly.

    Raises:
        UnusableError: it is something else.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise UnusableError("the first descriptor is not a memfd") from None
    if not seals & fcntl.F_SEAL_SHRINK:
        raise UnusableError("the memory may shrink (it lacks F_SEAL_SHRINK)")
    if file_system_magic(fd) != TMPFS_MAGIC:  # huge pages may be missing when they are touched
        raise UnusableError("the memory is of huge pages")
    size = os.fstat(fd).st_size
    if size != length:
        raise UnusableError(f"the memory has {size} bytes, not {length}")
    try:
        return memoryview(mmap.mmap(fd, length, mmap.MAP_SHARED))
    except OSError as exc:
        raise UnusableError(f"the memory cannot be mapped: {exc.strerror}") from None


def close_strangers(fds: Sequence[int]) -> None:
    """Close descriptors of which nothing is known, where nobody has to wait for that."""
    if fds:
        threading.Thread(target=_close, args=(fds,), daemon=True, name="close").start()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
