"""Host files as things: sizes, creation, what they occupy, and where their holes are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from typing import Any, Final

from tapcore.errors import ImageOpenError, ReadOnlyDeviceError, UsageError
from tapcore.files.linux import BLKGETSIZE64, BLKROGET, BLKSSZGET, fallocate
from tapcore.files.locks import lock_image
from tapcore.files.newfiles import new_files

_ZEROES = bytes(1 << 20)


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


def create_host_file(
    path: str | os.PathLike[str], size: int, preallocation: str = "off", *, zeroed: bool = False
) -> None:
    """Make (or replace) a plain file of a size; on an error nothing is left behind.

    While the core makes an image, the file is made beside what lies at `path`, which is replaced
    when the image is whole; `open_host_file` and `open_image_file` open the new one.

    A block device is not made but used: its head is left as it is, and it must be large enough.

    Args:
        path: the new file.
        size: bytes.
        preallocation: "off" (sparse), "falloc" (reserved), "full" (written with zeroes).
        zeroed: a block device is to read as zeroes too, as a new file does.

    Raises:
        OSError: as the system says.
        ImageOpenError: something else than a file or block device lies there.
        ImageLockedError: it is an image that somebody uses.
        UsageError: a block device smaller than `size`, or something that must not be replaced.
    """
    path = os.fsdecode(path)
    if (files := new_files()) is not None:
        fd = files.create(path)
        if not _used_as_it_is(fd, path, size, zeroed=zeroed):
            _make_anew(fd, size, preallocation)
        return
    # O_NONBLOCK: opening a pipe must not hang
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    try:
        check_kind(fd, path)
        refuse_read_only_device(fd, path)
        if _used_as_it_is(fd, path, size, zeroed=zeroed):
            return
        lock_image(fd, writing=True, path=path)
        try:
            _make_anew(fd, size, preallocation)
        except BaseException:
            os.unlink(path)
            raise
    finally:
        os.close(fd)


def open_host_file(path: str | os.PathLike[str], *, writing: bool = False) -> int:
    """Open a regular file or block device by name, for a driver that makes or inspects one.

    Args:
        path: perhaps of a file that `create_host_file` has just made.
        writing: for reading and writing.

    Returns:
        A descriptor, to be closed by the caller; nothing is locked.

    Raises:
        ImageOpenError: what the file is, or what the system says.
    """
    from tapcore.files.opening import open_host_fd

    return open_host_fd(os.fsdecode(path), os.O_RDWR if writing else os.O_RDONLY)


def supersede_host_file(path: str | os.PathLike[str]) -> None:
    """Remove a file of the image that is being replaced, when the new one takes its place.

    Only while the core makes an image, which may have a file of that name itself: that one stays.

    Args:
        path: of a file that nothing else needs.

    Raises:
        TapError: it must not be replaced, or is in use.
    """
    if (files := new_files()) is not None:
        files.supersede(os.fsdecode(path))


def remove_host_file(path: str | os.PathLike[str]) -> None:
    """Take back what `create_host_file` made: a file goes, a block device stays; raises nothing."""
    if (files := new_files()) is not None:
        files.take_back(os.fsdecode(path))
        return
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.stat(path).st_mode):
            os.unlink(path)


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


def _used_as_it_is(fd: int, path: str, size: int, *, zeroed: bool) -> bool:
    """Whether it is a block device, which is large enough then."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return False
    if host_file_size(fd) < size:
        raise UsageError("the block device is smaller than the image would be", image=path)
    if zeroed:
        fill_with_zeroes(fd, 0, size)
    return True


def fill_with_zeroes(fd: int, offset: int, length: int) -> None:
    """Make a range (bytes) of a file or block device read as zeroes, quickly where that goes."""
    if not length:
        return
    try:
        zero_range(fd, offset, length)
    except OSError:
        end = offset + length
        while offset < end:
            offset += os.pwrite(fd, _ZEROES[: end - offset], offset)


def _make_anew(fd: int, size: int, preallocation: str) -> None:
    os.ftruncate(fd, 0)
    os.ftruncate(fd, size)
    _preallocate(fd, 0, size, preallocation)


def _preallocate(fd: int, start: int, end: int, how: str) -> None:
    if how == "off" or end <= start:
        return
    if how == "falloc":
        os.posix_fallocate(fd, start, end - start)
        return
    while start < end:
        start += os.pwrite(fd, _ZEROES[: end - start], start)
    os.fsync(fd)


class HoleMap:
    """Where a host file has data and where holes, asked of the kernel and remembered.

    One run of data is remembered, because finding the end of a run can walk the whole file. To
    call a fresh hole "data" is harmless (it is read as zeroes); the other way round never happens,
    since only what the kernel called data is remembered.
    """

    __slots__ = ("_data_end", "_data_start", "_fd", "_supported")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._supported = True
        self._data_start = self._data_end = 0

    def forget(self) -> None:
        """A hole was punched."""
        self._data_start = self._data_end = 0

    def run(self, offset: int, end: int) -> tuple[int, bool]:
        """What lies at an offset.

        Args:
            offset: bytes.
            end: bytes; nothing past it is of interest.

        Returns:
            Where the run ends (at most `end`), and whether it is data.
        """
        if self._data_start <= offset < self._data_end:
            return min(self._data_end, end), True
        if not self._supported:
            return end, True
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
            if data > offset:
                return min(data, end), False
            hole = os.lseek(self._fd, offset, os.SEEK_HOLE)
            if hole <= offset:  # punched between the two questions
                return self.run(offset, end)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no data up to the end of the file
                return end, False
            self._supported = False
            return end, True
        self._data_start, self._data_end = offset, hole
        return min(hole, end), True

    def runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """All runs between two byte offsets, as (start, end, is data), neighbours joined."""
        start = offset
        while offset < end:
            stop, data = self.run(offset, end)
            if stop < end and self.run(stop, end)[1] == data:
                offset = stop
                continue
            yield start, stop, data
            start = offset = stop


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
    from tapcore.files.linux import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range (bytes) read as zeroes with its space kept, or taken."""
    from tapcore.files.linux import FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE

    fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)
