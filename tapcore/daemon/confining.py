"""What a disk process gives up once its image is open."""

from __future__ import annotations

import os
from typing import Any, Final

import attrs

from tapcore.daemon.spec import DiskSpec
from tapcore.interface.models import TdState
from tapcore.process.confinement import Confinement, User, confine

_EVERYTHING: Final = ("/",)


@attrs.frozen
class Confining:
    """How the processes of a daemon are confined.

    Attributes:
        wanted: they are.
        user: name of who they go on as; empty: who they are.
        images: directories in which images lie, for processes that several disks share; none: they
            lie anywhere.
        pages: directory in which counters of disks lie, for such a process; empty: there are none.
    """

    wanted: bool = True
    user: str = ""
    images: tuple[str, ...] = ()
    pages: str = ""

    def as_params(self) -> dict[str, Any]:
        """For the verb that opens a disk."""
        return {"confined": self.wanted, "user": self.user, "images": list(self.images)}

    def apply(self, disk: TdState, spec: DiskSpec, *, shared: bool) -> None:
        """Keep what the disk needs, now and for changes while it is served.

        Those make and open images in the directory of its image, and read parents where it may have
        them. A disk that is fixed, or only read, has no such changes: its process has its files
        alone.

        Args:
            disk: open.
            spec: with what it was attached.
            shared: other disks will be opened in this process.

        Raises:
            TapError: there is no such user, or the kernel refuses.
        """
        user = User.named(self.user) if self.user else None
        home = [disk.home] if disk.home else []
        if shared:
            pages = [self.pages] if self.pages else []
            within = [*self.images, *home, *pages] if self.images else _EVERYTHING
            confine(Confinement(writable=within, user=user))
        elif spec.fixed or spec.read_only:
            confine(Confinement(user=user))
        else:
            parents = [os.path.realpath(word) for word in spec.parents if os.path.isdir(word)]
            confine(Confinement(parents, home, user))
