"""A file that a name led to, held fast: what is opened afterwards is that file, and no other.

Between a look at a name and the opening of it, somebody who may write to a directory on the way can
let the name lead elsewhere. So the file is found once, without opening it for reading (O_PATH); the
place where it lies is judged; and then that file is opened, whatever has become of its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final, TypeAlias

import attrs

_FIND: Final = os.O_PATH | os.O_CLOEXEC


@attrs.define(eq=False)
class BoundFile:
    """A file, found and not yet opened for use.

    Attributes:
        path: as it was named, links and all: what QEMU takes names in an image relative to.
        real: where it lies, no link on the way.
        fd: of O_PATH; -1 once it is let go.
        identity: device and inode.
        linked: it has a name in the file system: it was not deleted, nor ever without one.
        judged: it was found at a place that was allowed before, not by the user's word.
        opened: a driver has opened it by this; who opened `path` may have got another.
    """

    path: str
    real: str
    fd: int
    identity: tuple[int, int]
    linked: bool
    judged: bool
    opened: bool = False

    @property
    def home(self) -> str:
        """The directory in which it lies; empty for a file without a name."""
        return os.path.dirname(self.real) if self.linked else ""

    def leads_here(self, path: str) -> bool:
        """Whether a driver means this file by a path."""
        return path in (self.path, self.real)

    def open(self, flags: int) -> int:
        """A descriptor of this very file.

        Args:
            flags: `os.O_*` access mode and more.

        Raises:
            OSError: as the system says; ESTALE, the name leads elsewhere by now (where the file was
                let go, or /proc is not mounted).
        """
        try:
            fd = -1 if self.fd < 0 else os.open(f"/proc/self/fd/{self.fd}", flags)
        except FileNotFoundError:
            fd = -1
        if fd < 0:
            fd = self._open_by_name(flags)
        return fd

    def _open_by_name(self, flags: int) -> int:
        fd = os.open(self.real, flags | os.O_NOFOLLOW)
        if _identity(fd) != self.identity:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    def let_go(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


File: TypeAlias = tuple[int, int]
"""Device and inode of a plain file or block device."""


class OpenedByItself:
    """Watches a driver that may open its path by itself, and not by `open_image_file`.

    What it got is looked at afterwards, by the name and by the descriptors that it holds. That is
    less than what `open_image_file` promises: a file that it has closed again is not seen.

    Args:
        bound: the file that it is to open; None: there is nothing to watch.
    """

    def __init__(self, bound: BoundFile | None) -> None:
        self._bound = bound
        self._before = _open_files() if bound is not None and bound.judged else {}

    def another_file(self) -> bool:
        """Whether it seems to have got another file."""
        bound = self._bound
        if bound is None or bound.opened:
            return False
        try:
            status = os.stat(bound.real)
        except OSError:
            return True
        if (status.st_dev, status.st_ino) != bound.identity:
            return True
        if not bound.judged:
            return False
        new = [file for fd, file in _open_files().items() if self._before.get(fd) != file]
        return bool(new) and bound.identity not in new


def _open_files() -> dict[int, File]:
    """The files that this process has open, by their descriptors."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # /proc is not mounted
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the one that listed the folder
                status = os.fstat(int(name))
                if stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFBLK):
                    found[int(name)] = (status.st_dev, status.st_ino)
    return found


def bind(path: str) -> BoundFile:
    """The file that a path of the user leads to; links are followed.

    Raises:
        OSError: as the system says.
    """
    fd = os.open(path, _FIND)
    try:
        return _bound(path, _place_of(fd, path), fd, judged=False)
    except BaseException:
        os.close(fd)
        raise


def bind_real(real: str, path: str) -> BoundFile:
    """The file that lies at a place which was judged; no link is followed, in no part of it.

    Args:
        real: from the root on, all links resolved.
        path: as it was named.

    Raises:
        OSError: as the system says; ENOTDIR or ELOOP, a part has become a link meanwhile.
    """
    parts = [part for part in real.split("/") if part]
    fd = os.open("/", _FIND | os.O_DIRECTORY)
    for n, part in enumerate(parts, 1):
        kind = os.O_DIRECTORY if n < len(parts) else 0
        try:
            inner = os.open(part, _FIND | os.O_NOFOLLOW | kind, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return _bound(path, real, fd, judged=True)
    except BaseException:
        os.close(fd)
        raise


def unmade(real: str, path: str) -> BoundFile:
    """A file that this thread makes, which has no name yet; whoever opens it asks for that first.

    Args:
        real: where it will lie.
        path: as it was named.
    """
    return BoundFile(path, real, -1, (-1, -1), linked=True, judged=True)


def _bound(path: str, real: str, fd: int, *, judged: bool) -> BoundFile:
    linked = os.fstat(fd).st_nlink > 0
    return BoundFile(path, real, fd, _identity(fd), linked=linked, judged=judged)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _place_of(fd: int, path: str) -> str:
    """Where an open file lies: the kernel's word, and without /proc that of its name."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        real = os.path.realpath(path)
        other = bind_real(real, path)
        other.let_go()
        if other.identity != _identity(fd):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        return real
