"""What a process that serves disks gives up, once they are open, for good.

A hostile image that takes over its driver reaches the disk that it is, and not the host: not other
files, no programs, sockets or processes. See docs/confinement.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable

import attrs

from tapcore.errors import TapError, describe
from tapcore.process.confinement import landlock, rooms, seccomp
from tapcore.process.confinement.kernel import give_up_new_privileges
from tapcore.process.confinement.privileges import User, become, give_up_capabilities, limit
from tapcore.process.confinement.threads import unbound_threads
from tapcore.process.workers import end_idle_threads

__all__ = ["Confinement", "User", "confine"]

log = logging.getLogger(__name__)


def _as_text(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    return tuple(os.fsdecode(path) for path in paths)


@attrs.frozen
class Confinement:
    """What stays within reach, besides what is open already.

    Attributes:
        readable: files, and directories with all that is in them.
        writable: directories in which files are made, written, replaced and removed.
        user: who the process goes on as; None: who it is.
    """

    readable: tuple[str, ...] = attrs.field(default=(), converter=_as_text)
    writable: tuple[str, ...] = attrs.field(default=(), converter=_as_text)
    user: User | None = None


def confine(confinement: Confinement, renew: Iterable[Callable[[], None]] = ()) -> None:
    """Give up everything else, for this process and for good (called by its main thread).

    Files and devices that are open stay so, and may be opened again by their names in the same way.
    What the kernel does not have is told in one line of the log, and so is a thread that was begun
    before and goes on. Those that do work for disks end, and others are begun when there is some.

    Args:
        confinement: what stays within reach.
        renew: let other threads be begun anew, which are bound then as the caller is.

    Raises:
        TapError: the user cannot be changed, or the kernel refuses what it has.
    """
    end_idle_threads()
    try:
        if confinement.user is not None:
            become(confinement.user)
        lacking = _give_up(confinement, renew)
    except OSError as exc:
        raise TapError(f"the process cannot be confined: {describe(exc)}", errno=exc.errno) from exc
    if lacking:
        log.warning("the kernel does not confine this process in all: no %s", ", no ".join(lacking))


def _give_up(confinement: Confinement, renew: Iterable[Callable[[], None]]) -> list[str]:
    """Returns what the kernel lacks."""
    limit()
    give_up_new_privileges()
    lacking = _stay_in(confinement)
    if os.geteuid() == 0:
        lacking += _without_powers()
    for thread in renew:
        thread()
    if loose := unbound_threads():
        lacking.append(f"hold on threads that are older: {', '.join(loose)}")
    return lacking + _filter_calls()


def _stay_in(confinement: Confinement) -> list[str]:
    version = landlock.version()
    if not version:
        return ["Landlock, so that all files of this user can be reached"]
    landlock.restrict(_rooms(confinement), version)
    return [f"limits on {what}" for what in landlock.missing(version)]


def _without_powers() -> list[str]:
    try:
        give_up_capabilities()
    except OSError as exc:
        return [f"loss of root's powers ({describe(exc)})"]
    return []


def _filter_calls() -> list[str]:
    if not seccomp.known_machine():
        return [f"filter of system calls for {os.uname().machine}"]
    try:
        seccomp.install()
    except OSError as exc:
        return [f"filter of system calls ({describe(exc)})"]
    return []


def _rooms(confinement: Confinement) -> Iterable[landlock.Room]:
    yield from rooms.code()
    yield from rooms.system()
    yield from rooms.open_files()
    yield from rooms.directories(confinement.readable, rooms.READ)
    yield from rooms.directories(confinement.writable, rooms.CREATE)
