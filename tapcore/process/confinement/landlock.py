"""Landlock: what a process may still reach, named by itself, and never given back.

Source: landlock(7), and `linux/landlock.h` for the numbers.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import stat
from collections.abc import Iterable
from typing import Final

import attrs

from tapcore.process.confinement.kernel import system_call

_CREATE_RULESET: Final = 444  # these three are the same on every architecture
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446

_VERSION: Final = 1 << 0
_PATH_BENEATH: Final = 1

_REFER_SINCE: Final = 2
_TRUNCATE_SINCE: Final = 3
_NETWORK_SINCE: Final = 4
_IOCTL_SINCE: Final = 5
_SCOPES_SINCE: Final = 6


class Right(enum.IntFlag):
    """LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_FIRST_RIGHTS: Final = Right((1 << 13) - 1)
_OF_FILES: Final = (
    Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE | Right.IOCTL_DEV
)
_NETWORK: Final = 0b11  # to bind and to connect TCP sockets
_SCOPES: Final = 0b11  # abstract Unix sockets, and signals: those of this domain alone


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """The version of Landlock's interface that the kernel has; 0: it has none, or it is off."""
    try:
        return system_call(_CREATE_RULESET, 0, 0, _VERSION)
    except OSError:
        return 0


@attrs.frozen
class Room:
    """A file, or a directory's tree, that stays within reach.

    Attributes:
        where: a path, links and all, or an open descriptor.
        rights: what may be done there; what a file cannot have is left out for one.
    """

    where: str | int
    rights: Right


def handled_rights(landlock: int) -> Right:
    """What a version of the interface can forbid in file systems."""
    rights = _FIRST_RIGHTS
    if landlock >= _REFER_SINCE:
        rights |= Right.REFER
    if landlock >= _TRUNCATE_SINCE:
        rights |= Right.TRUNCATE
    if landlock >= _IOCTL_SINCE:
        rights |= Right.IOCTL_DEV
    return rights


def missing(landlock: int) -> list[str]:
    """What a version of the interface cannot forbid, in words."""
    since = {
        "that files are cut off by their names": _TRUNCATE_SINCE,
        "TCP": _NETWORK_SINCE,
        "devices' ioctls": _IOCTL_SINCE,
        "abstract Unix sockets and signals": _SCOPES_SINCE,
    }
    return [what for what, first in since.items() if landlock < first]


def restrict(rooms: Iterable[Room], landlock: int) -> None:
    """From now on this thread, and those it begins, reach these rooms and no others.

    It binds no TCP socket and connects none, and reaches abstract Unix sockets and sends signals
    only among those that were restricted with it. What is open already stays open.

    Args:
        rooms: what is not there is left out.
        landlock: the `version`, at least 1.

    Raises:
        OSError: as the kernel says; nothing is restricted.
    """
    handled = handled_rights(landlock)
    attr = _RulesetAttr(handled)
    if landlock >= _NETWORK_SINCE:
        attr.handled_access_net = _NETWORK
    if landlock >= _SCOPES_SINCE:
        attr.scoped = _SCOPES
    size = 8 if landlock < _NETWORK_SINCE else 16 if landlock < _SCOPES_SINCE else 24
    ruleset = system_call(_CREATE_RULESET, ctypes.byref(attr), size, 0)
    try:
        for room in rooms:
            _add(ruleset, room, handled)
        system_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, room: Room, handled: Right) -> None:
    if isinstance(room.where, int):
        _add_open(ruleset, room.where, room.rights & handled)
        return
    try:
        fd = os.open(room.where, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _add_open(ruleset, fd, room.rights & handled)
    finally:
        os.close(fd)


def _add_open(ruleset: int, fd: int, rights: Right) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= _OF_FILES
    if not rights:
        return
    rule = _PathBeneathAttr(rights, fd)
    try:
        system_call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    except OSError as exc:
        if exc.errno != errno.EBADFD:  # memory, a pipe: no file system has it
            raise
