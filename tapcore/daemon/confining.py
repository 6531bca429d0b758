"""What a disk process gives up once its image is open."""

from __future__ import annotations

import os

from tapcore.daemon.spec import DiskSpec
from tapcore.interface.models import TdState
from tapcore.process.confinement import Confinement, User, confine

_EVERYTHING = "/"


def confine_to(disk: TdState, spec: DiskSpec, *, shared: bool, user: str) -> None:
    """Keep what the disk needs, now and for changes while it is served.

    Those make and open images in the directory of its image, and read parents where it may have
    them. A disk that is fixed, or only read, has no such changes: its process has its files alone.
    One that other disks will share may still reach all files, but no programs and sockets.

    Args:
        disk: open.
        spec: with what it was attached.
        shared: other disks will be opened in this process.
        user: name of who the process goes on as; empty: who it is.

    Raises:
        TapError: there is no such user, or the kernel refuses.
    """
    who = User.named(user) if user else None
    if shared:
        confine(Confinement(writable=[_EVERYTHING], user=who))
        return
    if spec.fixed or spec.read_only:
        confine(Confinement(user=who))
        return
    named = [os.path.realpath(word) for word in spec.parents if os.path.isdir(word)]
    confine(Confinement(named, [disk.home] if disk.home else [], who))
