"""Host files as things: of which kind they are, their sizes, and zeroes in them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Any, Final

from tapcore.errors import ImageOpenError, ReadOnlyDeviceError, UsageError
from tapcore.files.linux import (
    BLKGETSIZE64,
    BLKROGET,
    BLKSSZGET,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)

_NOT_AN_IMAGE: Final = {
    stat.S_IFDIR: "is a directory, not an image",
    stat.S_IFIFO: "is a pipe; an image must be a file or a block device",
    stat.S_IFSOCK: "is a socket; an image must be a file or a block device",
    stat.S_IFCHR: "is a character device; an image must be a file or a block device",
}


def kind_error(kind: int, path: str) -> ImageOpenError:
    """What to raise for a file of a kind (`stat.S_IF*`) that cannot be an image."""
    code = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
    return ImageOpenError(_NOT_AN_IMAGE[kind], image=path, errno=code)


def check_kind(fd: int, path: str) -> None:
    """Raise ImageOpenError for what is neither a regular file nor a block device."""
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        raise kind_error(kind, path)


def host_file_size(fd: int) -> int:
    """Size in bytes of a regular file or block device."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        (size,) = struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))
        return int(size)
    return status.st_size


def logical_block_size(fd: int) -> int:
    """Bytes in a logical sector of a block device; 512 for a file."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return 512
    (size,) = struct.unpack("i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))
    return int(size)


def occupied_bytes(fd: int) -> int:
    """Bytes that the host file really takes (a block device: all of it)."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return host_file_size(fd)
    return status.st_blocks * 512


def describe_host_file(fd: int) -> dict[str, Any]:
    """For `info`: what kind of file, and its length in bytes."""
    kind = "block device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file"
    return {"kind": kind, "file_size": host_file_size(fd)}


def refuse_read_only_device(where: int | str, path: str) -> None:
    """Before something is written: some kernels let such a device be opened for writing, too.

    Args:
        where: a descriptor, or a path.
        path: for the error.

    Raises:
        ReadOnlyDeviceError: it is one.
    """
    if isinstance(where, int):
        read_only = stat.S_ISBLK(os.fstat(where).st_mode) and _is_set_read_only(where)
    else:
        read_only = is_block_device(where) and _opens_read_only(where)
    if read_only:
        raise ReadOnlyDeviceError("is a read-only block device", image=path)


def _is_set_read_only(fd: int) -> bool:
    (found,) = struct.unpack("i", fcntl.ioctl(fd, BLKROGET, bytes(4)))
    return bool(found)


def _opens_read_only(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return _is_set_read_only(fd)
    finally:
        os.close(fd)


def is_block_device(path: str) -> bool:
    """Whether a path leads to a block device."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def fill_with_zeroes(fd: int, offset: int, length: int) -> None:
    """Make a range (bytes) of a file or block device read as zeroes, quickly where that goes."""
    if not length:
        return
    try:
        zero_range(fd, offset, length)
    except OSError:
        from tapcore.buffers import ZEROES  # most commands zero nothing

        end = offset + length
        while offset < end:
            offset += os.pwrite(fd, ZEROES[: end - offset], offset)


def resize_host_file(fd: int, size: int) -> None:
    """Grow or shrink a plain file to `size` bytes; new bytes are a hole.

    Raises:
        UsageError: a block device, which has one size.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        raise UsageError("a block device cannot be resized")
    os.ftruncate(fd, size)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a range (bytes) back to the file system; it reads as zeroes afterwards."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range (bytes) read as zeroes with its space kept, or taken."""
    fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)
