"""What of the file system a process that serves disks still needs, once they are open."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Final

from tapcore.process.confinement.landlock import Right, Room

READ: Final = Right.READ_FILE | Right.READ_DIR
WRITE: Final = READ | Right.WRITE_FILE | Right.TRUNCATE | Right.IOCTL_DEV
CREATE: Final = WRITE | Right.MAKE_REG | Right.REMOVE_FILE

_LIBRARIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_SYSTEM: Final = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/proc/self",  # of this process alone
)


def code() -> Iterator[Room]:
    """Where modules lie that are imported late, with the libraries that they load; for tracebacks.

    A directory of modules that is the root of everything is none.
    """
    paths = {os.path.dirname(os.__file__), *sys.path, *_LIBRARIES}
    for path in sorted(os.path.realpath(each) for each in paths if each):
        if path != "/":
            yield Room(path, READ)


def system() -> Iterator[Room]:
    """Clocks, languages and devices that libraries look at, and this process in /proc."""
    yield from (Room(path, READ) for path in _SYSTEM)
    yield Room(os.devnull, Right.READ_FILE | Right.WRITE_FILE)


def open_files() -> Iterator[Room]:
    """Regular files and block devices that are open: they may be opened again, in the same way."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            kind, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:  # that of the listing
            continue
        if flags & os.O_PATH or not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            continue
        yield Room(fd, WRITE if flags & os.O_ACCMODE == os.O_RDWR else _one_way(flags))


def _one_way(flags: int) -> Right:
    return Right.WRITE_FILE if flags & os.O_ACCMODE == os.O_WRONLY else Right.READ_FILE


def directories(paths: Iterable[str], rights: Right) -> Iterator[Room]:
    """Trees of directories, wherever their names lead now; of files, those alone.

    Where a directory has files that are links, as those of certificates are that renew themselves,
    the directories in which these lie belong to it.
    """
    for path in paths:
        yield Room(path, rights)
        if rights & Right.WRITE_FILE:
            continue
        led = {os.path.dirname(os.path.realpath(each)) for each in _links(path)}
        yield from (Room(each, rights) for each in sorted(led - {"/"}))


def _links(path: str) -> list[str]:
    """The path and what is in it: those that are symbolic links."""
    try:
        inside = [os.path.join(path, name) for name in os.listdir(path)]
    except OSError:
        inside = []
    return [each for each in (path, *inside) if os.path.islink(each)]
