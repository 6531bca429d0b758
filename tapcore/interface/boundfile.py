"""A file that a name led to, held fast: what is opened afterwards is that file, and no other.

Between a look at a name and the opening of it, somebody who may write to a directory on the way can
let the name lead elsewhere. So the file is found once, without opening it for reading (O_PATH); the
place where it lies is judged; and then that file is opened, whatever has become of its name.
"""

from __future__ import annotations

import errno
import os

import attrs

from tapcore.interface.identity import Identity, identity_of_open


@attrs.define(eq=False, repr=False)
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
    identity: Identity
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
        if identity_of_open(fd) != self.identity:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    def let_go(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
