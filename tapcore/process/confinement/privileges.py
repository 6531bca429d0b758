"""Rights of the process as a whole: its user, its capabilities, its limits."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import resource
from typing import Final

import attrs

from tapcore.errors import UsageError
from tapcore.process.confinement.kernel import system_call

_CALLS: Final = {"x86_64": (125, 126), "aarch64": (90, 91)}  # capget and capset
_CAPABILITY_VERSION_3: Final = 0x20080522

_CHOWN: Final = 1 << 0
_DAC_OVERRIDE: Final = 1 << 1
_FOWNER: Final = 1 << 3
_FSETID: Final = 1 << 4
_KEPT: Final = _CHOWN | _DAC_OVERRIDE | _FOWNER | _FSETID
"""Capabilities (capabilities(7)) that files need which belong to somebody else, as root's images
do; where Landlock leads, no others are within reach."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@attrs.frozen
class User:
    """Who a process is to be.

    Attributes:
        uid: number of the user.
        gid: of the main group.
        groups: all of them.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def named(cls, name: str) -> User:
        """By name or number; looked up before anything is given up.

        Raises:
            UsageError: there is no such user, or only root may become another.
        """
        try:
            entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        except KeyError:
            raise UsageError(f"there is no user '{name}'") from None
        if os.geteuid() and os.geteuid() != entry.pw_uid:
            raise UsageError(f"only root can go on as the user '{name}'")
        others = [group.gr_gid for group in grp.getgrall() if entry.pw_name in group.gr_mem]
        return cls(entry.pw_uid, entry.pw_gid, (entry.pw_gid, *others))


def become(user: User) -> None:
    """Be another user from now on, in all threads, and never root again.

    Raises:
        OSError: the kernel refuses.
    """
    if os.geteuid() == user.uid:
        return
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def limit() -> None:
    """What is in memory, such as keys, goes into no file when it crashes; none of it is locked."""
    for number in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
        resource.setrlimit(number, (0, 0))


def give_up_capabilities() -> None:
    """Of root's powers keep those over files; this thread, and those that it begins.

    Raises:
        OSError: ENOSYS on a machine whose numbers are not known.
    """
    calls = _CALLS.get(os.uname().machine)
    if calls is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    sets = (_Sets * 2)()
    header = _Header(_CAPABILITY_VERSION_3, 0)
    get, put = calls
    system_call(get, ctypes.byref(header), ctypes.byref(sets))
    kept = sets[0].permitted & _KEPT
    sets[0], sets[1] = _Sets(kept, kept, 0), _Sets(0, 0, 0)
    system_call(put, ctypes.byref(header), ctypes.byref(sets))
