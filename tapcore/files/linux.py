"""System calls of Linux that the standard library does not have.

ctypes is imported at the first call, not before: it is not needed to open and read an image.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

BLKROGET: Final = 0x125E
BLKSSZGET: Final = 0x1268
BLKGETSIZE64: Final = 0x80081272

_NR_CACHESTAT: Final = 451  # the same on every architecture (since Linux 6.5)
_PAGE_SHIFT: Final = os.sysconf("SC_PAGE_SIZE").bit_length() - 1


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    import ctypes

    from tapcore.process.libc import typed_function

    # offsets have 64 bits in the first everywhere; a libc without it has no other kind
    call = typed_function("fallocate64", "fallocate")
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    call.restype = ctypes.c_int

    def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
        return 0 if call(fd, mode, offset, length) == 0 else ctypes.get_errno()

    return fallocate


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2).

    Args:
        fd: file, open for writing.
        mode: `FALLOC_FL_*` bits.
        offset: bytes.
        length: bytes, at least 1.

    Raises:
        OSError: EOPNOTSUPP where the file system does not have the mode.
    """
    while (code := _fallocate()(fd, mode, offset, length)) == errno.EINTR:
        pass
    if code in (errno.ENODEV, errno.ENOSYS):  # the same meaning for a caller
        code = errno.EOPNOTSUPP
    if code:
        raise OSError(code, os.strerror(code))


@functools.cache
def _cachestat() -> Callable[[int, int, int], int] | None:
    """A function that counts a range's pages in the page cache, None on an older kernel."""
    import ctypes

    from tapcore.process.libc import typed_function

    class Range(ctypes.Structure):
        _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))

    class Stat(ctypes.Structure):
        _fields_ = tuple(
            (name, ctypes.c_uint64)
            for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
        )

    syscall = typed_function("syscall")
    syscall.argtypes = (
        ctypes.c_long,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint,
    )
    syscall.restype = ctypes.c_long
    where, stat = Range(), Stat()
    where_p, stat_p = ctypes.addressof(where), ctypes.addressof(stat)

    def cached_pages(fd: int, offset: int, length: int) -> int:
        # keeps the structures behind the two addresses alive; one thread uses them
        where.off, where.len = offset, length
        return stat.cache if syscall(_NR_CACHESTAT, fd, where_p, stat_p, 0) == 0 else -1

    with open(__file__, "rb") as probe:
        return cached_pages if cached_pages(probe.fileno(), 0, 4096) >= 0 else None


def counts_pages() -> bool:
    """Whether the kernel (since 6.5) can say it."""
    return _cachestat() is not None


def all_in_page_cache(fd: int, offset: int, length: int) -> bool:
    """Whether a range of a file lies wholly in the page cache.

    Args:
        fd: an open file.
        offset: bytes.
        length: bytes, at least 1.

    Returns:
        False where it does not, or where the kernel (before 6.5) cannot say.
    """
    count = _cachestat()
    if count is None:
        return False
    pages = ((offset + length - 1) >> _PAGE_SHIFT) - (offset >> _PAGE_SHIFT) + 1
    return count(fd, offset, length) == pages


TMPFS_MAGIC: Final = 0x01021994
EXT4_MAGIC: Final = 0xEF53
XFS_MAGIC: Final = 0x58465342
BTRFS_MAGIC: Final = 0x9123683E


def file_system_magic(fd: int) -> int:
    """Which file system a file lies on (`f_type` of statfs(2)); 0 where that cannot be told."""
    import ctypes

    from tapcore.process.libc import libc

    statfs = (ctypes.c_long * 32)()  # struct statfs is shorter on every architecture
    return int(statfs[0]) if libc().fstatfs(fd, statfs) == 0 else 0


def lies_in_memory(fd: int) -> bool:
    """Whether a file lies on tmpfs, where reading never waits for a disk."""
    return file_system_magic(fd) == TMPFS_MAGIC


def times_waited() -> int:
    """How often this thread has waited for something but a processor."""
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
