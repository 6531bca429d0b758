"""Host files by their final names, for whoever makes or looks at an image.

While the core makes an image (`newfiles.making`), these names mean the new files.
"""

from __future__ import annotations

import contextlib
import os
import stat

from tapcore.errors import UsageError
from tapcore.files.beingmade import new_fd, new_files
from tapcore.files.existing import open_existing, open_refused
from tapcore.files.hostfile import (
    check_kind,
    fill_with_zeroes,
    host_file_size,
    refuse_read_only_device,
)
from tapcore.files.locks import lock_image
from tapcore.interface.boundfile import BoundFile


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
    return open_host_fd(os.fsdecode(path), os.O_RDWR if writing else os.O_RDONLY)


def open_host_fd(path: str, flags: int, bound: BoundFile | None = None) -> int:
    """Open a regular file or block device.

    Args:
        path: resolved and allowed; of a file that is being made, its final name.
        flags: `os.O_*` access mode and more; O_CLOEXEC is added.
        bound: the file that the path led to when it was judged: that one is opened.

    Raises:
        ImageOpenError: what the file is, or what the system says.
    """
    try:
        made = new_fd(path, flags)
    except OSError as exc:
        raise open_refused(exc, path, flags) from None
    return open_existing(path, flags, bound) if made is None else made


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


def _used_as_it_is(fd: int, path: str, size: int, *, zeroed: bool) -> bool:
    """Whether it is a block device, which is large enough then."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return False
    if host_file_size(fd) < size:
        raise UsageError("the block device is smaller than the image would be", image=path)
    if zeroed:
        fill_with_zeroes(fd, 0, size)
    return True


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
    from tapcore.buffers import ZEROES

    while start < end:
        start += os.pwrite(fd, ZEROES[: end - start], start)
    os.fsync(fd)
