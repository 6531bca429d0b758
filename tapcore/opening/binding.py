"""From a name to the one file that may be opened: found, judged, and held fast.

Links are followed in what the user names. A name that an image records is judged by the policy at
the place to which it leads, and then no link is followed any more.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from tapcore.files.beingmade import is_being_made
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.identity import identity_of_open
from tapcore.interface.policy import Naming, ReferencePolicy

_FIND: Final = os.O_PATH | os.O_CLOEXEC

_TRIES: Final = 8
"""How often a name is looked at again that leads elsewhere each time."""


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
    return BoundFile(path, real, fd, identity_of_open(fd), linked=linked, judged=judged)


def _place_of(fd: int, path: str) -> str:
    """Where an open file lies: the kernel's word, and without /proc that of its name."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        real = os.path.realpath(path)
        other = bind_real(real, path)
        other.let_go()
        if other.identity != identity_of_open(fd):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        return real


def bind_named(
    named: str, policy: ReferencePolicy, *, image: Naming, home: str | None
) -> BoundFile:
    """The file that an image names, found and allowed: only that one may be opened.

    Args:
        named: the name as the image records it.
        policy: which names are allowed.
        image: which names it.
        home: directory of the image that the user named, in whose tree the file may lie; empty:
            none; None: as that image's name leads there.

    Raises:
        ReferencePolicyError: not allowed; the text says what would allow it.
        OSError: the system's answer to looking for it.
    """
    for last in (False,) * _TRIES + (True,):
        path = image.path_of(named)
        real = policy.allowed_place(path, named, image=image, home=home)
        if is_being_made(real):
            return unmade(real, path)
        try:
            return bind_real(real, path)
        except OSError as exc:
            if exc.errno not in (errno.ELOOP, errno.ENOTDIR) or last:
                raise
    raise AssertionError("unreachable")
