"""The run directory: where the sockets of a daemon and of its disks lie, for one daemon only."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from typing import Final

from tapcore.errors import UsageError, describe

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


RUN_DIR: Final = "TAPCORE_RUN_DIR"
"""In the environment: what `--run-dir` would say."""


def default_run_directory() -> str:
    """What TAPCORE_RUN_DIR says, else for root `/run/tapcore`; for others it is theirs.

    Raises:
        UsageError: the user has no such directory.
    """
    if chosen := os.environ.get(RUN_DIR):
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return "/run/tapcore"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(runtime):
        raise UsageError("XDG_RUNTIME_DIR is not set: --run-dir says where sockets may lie")
    return os.path.join(runtime, "tapcore")


def check_name(name: str) -> str:
    """A disk's name, which becomes a part of files' names.

    Raises:
        UsageError: it cannot be one.
    """
    if not _NAME.fullmatch(name):
        text = "a disk's name has letters, digits, '.', '_' and '-', 64 at most, the first a letter"
        raise UsageError(f"{text} or digit", image=name)
    return name


class RunDirectory:
    """Where everything of a daemon lies.

    Args:
        path: of the directory.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._lock = -1

    @property
    def control(self) -> str:
        """The daemon's control socket."""
        return f"{self.path}/control.sock"

    @property
    def state(self) -> str:
        """What the daemon remembers."""
        return f"{self.path}/state.json"

    def process_socket(self, name: str) -> str:
        """The control socket of a disk process."""
        return f"{self.path}/disks/{name}.sock"

    def process_log(self, name: str) -> str:
        """What a disk process has to tell."""
        return f"{self.path}/disks/{name}.log"

    def open_log(self, name: str) -> int:
        """A descriptor to add to that, the caller's to close.

        Raises:
            OSError: as the system says.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.process_log(name), flags, 0o600)

    def page(self, name: str) -> str:
        """The counters of a disk: see `tapcore.metrics`.

        They have a directory of their own, since a process of several disks makes some of them when
        it is confined already.
        """
        return f"{self.path}/pages/{name}.metrics"

    def nbd_socket(self, name: str) -> str:
        """Where a disk is served that was attached without a place."""
        return f"{self.path}/nbd/{name}.sock"

    def take(self) -> None:
        """Make it where it is not there, and keep every other daemon out until this process ends.

        Raises:
            UsageError: another daemon has it, or it is not safe.
        """
        try:
            for folder in ("", "/disks", "/nbd", "/pages"):
                _make(f"{self.path}{folder}")
            lock = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            if isinstance(exc, UsageError):
                raise
            raise UsageError(describe(exc), image=self.path, errno=exc.errno) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            whose = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            text = f"another daemon has this directory (process {whose or 'unknown'})"
            raise UsageError(text, image=self.path, errno=errno.EBUSY) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def leave(self) -> None:
        """Another may have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _make(folder: str) -> None:
    """A directory of mode 0700, which is this user's."""
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError("is not a directory", image=folder)
    if found.st_uid != os.geteuid():
        raise UsageError("belongs to another user", image=folder, errno=errno.EPERM)
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(folder, 0o700)
