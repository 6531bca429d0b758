"""Opening the host file of an image for its driver: in which cache mode, under which lock."""

from __future__ import annotations

import errno
import logging
import os

from tapcore.constants import TD_RDONLY
from tapcore.errors import ImageOpenError
from tapcore.files.byname import open_host_fd
from tapcore.files.imagefile import ImageFile
from tapcore.files.lent import is_borrowing
from tapcore.files.locks import lock_image
from tapcore.files.noting import note
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.options import OpenOptions

log = logging.getLogger(__name__)


def open_image_file(path: str | os.PathLike[str], flags: int, options: OpenOptions) -> ImageFile:
    """Open a host file for a driver.

    Args:
        path: resolved and allowed.
        flags: `TD_RDONLY` or 0.
        options: cache mode, locking, and whether flushes wait for the disk.

    Returns:
        The file, locked; asynchronous in either cache mode.

    Raises:
        TapError: not a file or block device, no permission, in use, or what to install.
    """
    path = os.fsdecode(path)
    if options.bound is None and options.file_opener is not None:
        on_disk: ImageFile | None = options.file_opener(path, flags, options)
        if on_disk is not None:
            return on_disk
    read_only = bool(flags & TD_RDONLY)
    access = os.O_RDONLY if read_only else os.O_RDWR
    bound = options.bound
    if bound is not None and not bound.leads_here(path):
        bound = None  # another file, which the driver names itself
    fd = _open_direct(path, access, bound) if options.cache == "none" else None
    direct = fd is not None
    if fd is None:
        fd = open_host_fd(path, access, bound)
    try:
        if options.locking:
            lock_image(fd, writing=not read_only, path=path)
        kind = _direct_file() if direct else ImageFile
        file = kind(fd, path, read_only=read_only, workers=options.workers)
        if options.rehearsal or not read_only:
            note(fd, written=True)
        if bound is not None:
            bound.opened = True
    except BaseException:
        os.close(fd)
        raise
    file.durable = options.durable
    options.opened.add(file)
    if direct and is_borrowing():
        _prepare(file)
    return file


def _prepare(file: ImageFile) -> None:
    """Open what else it will need, while somebody can be asked for it."""
    try:
        os.fstat(file.meta_fd)  # it is opened when it is first asked for; under -O, too
    except BaseException:
        file.close()
        raise


def _direct_file() -> type[ImageFile]:
    from tapcore.files.direct import DirectFile

    return DirectFile


def _open_direct(path: str, access: int, bound: BoundFile | None) -> int | None:
    """With O_DIRECT, or None where the file system does not have it."""
    try:
        return open_host_fd(path, access | os.O_DIRECT, bound)
    except ImageOpenError as exc:
        if exc.errno != errno.EINVAL:
            raise
        if not os.path.isfile(path):
            return None  # the reason is another; opening it without tells which
        log.warning("%s: the file system has no O_DIRECT; using the page cache", path)
        return None
