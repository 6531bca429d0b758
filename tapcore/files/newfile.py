"""A file of a new image: how it is made, and what it is called until it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from typing import Final

import attrs

_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@attrs.define(eq=False, repr=False)
class NewFile:
    """A file that is being made.

    Attributes:
        path: its final name, symbolic links resolved.
        fd: the file, open for reading and writing; -1 where only its name is known.
        temporary: its name until then; empty: none.
        old_fd: what lies at `path` now, locked; None: nothing.
        in_place: it is no new file, but the old one being overwritten.
        begun: of such a one: whether that has been done.
        head: its first bytes before.
    """

    path: str
    fd: int
    temporary: str = ""
    old_fd: int | None = None
    in_place: bool = False
    begun: bool = False
    head: bytes = b""

    @property
    def handle(self) -> int | str:
        """For calls that take a descriptor or a name."""
        return self.fd if self.fd >= 0 else self.temporary

    def close(self) -> None:
        """Give back the descriptors, and the locks with them; each once, whoever interrupts.

        Each is forgotten first: nothing is heard between that and its end, but right after it.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        old_fd, self.old_fd = self.old_fd, None
        if old_fd is not None and old_fd != fd:
            os.close(old_fd)


def new_file(path: str) -> tuple[int, str]:
    """A new file beside what it is to become, for nobody else to see.

    Args:
        path: its final name.

    Returns:
        A descriptor, and its name for the time being: empty where the file system can do without.

    Raises:
        OSError: as the system says.
    """
    folder = os.path.dirname(path) or "."
    if _can_be_unnamed():
        try:
            return _with_room(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)), ""
        except OSError as exc:
            if exc.errno not in _NO_TMPFILE:
                raise
    sweep(path)
    name = temporary_name(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    return _with_room(lambda: os.open(name, flags, 0o600)), name


def _can_be_unnamed() -> bool:
    """Without this directory what has no name cannot be given one."""
    return os.path.isdir("/proc/self/fd")


def reopen(made: NewFile, flags: int) -> int:
    """A descriptor of its own for a file that is being made."""
    name = made.temporary or f"/proc/self/fd/{made.fd}"
    return _with_room(lambda: os.open(name, flags | os.O_CLOEXEC))


def _with_room(opening: Callable[[], int]) -> int:
    """Open something; with more files where the limit of this process is in the way."""
    import resource  # now: at the limit it could not be opened either

    try:
        return opening()
    except OSError as exc:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if exc.errno != errno.EMFILE or soft == hard:
            raise
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return opening()


# ---- names for the time being ----------------------------------------------------------------


def _stem(path: str) -> str:
    """What the temporary names for a place begin with, on this machine."""
    from zlib import crc32

    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    here = crc32(f"{os.uname().nodename} {space}".encode("utf-8", "surrogateescape"))
    return f".tapdisk-{crc32(os.fsencode(os.path.basename(path))):08x}-{here:08x}"


def temporary_name(path: str) -> str:
    """A hidden name beside a path, which nobody can guess, and which tells whose it is."""
    name = f"{_stem(path)}-{os.getpid()}-{os.urandom(8).hex()}"
    return os.path.join(os.path.dirname(path), name)


def sweep(path: str) -> None:
    """Remove what processes that are no more have left of their work on a file."""
    folder = os.path.dirname(path) or "."
    ours = re.compile(rf"{re.escape(_stem(path))}-(\d{{1,10}})-[0-9a-f]{{16}}")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = ours.fullmatch(name)
            if match and not _alive(int(match[1])):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
