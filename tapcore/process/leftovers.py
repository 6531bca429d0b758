"""Files that a process leaves behind, removed by another one when it has ended.

For a process that gives up the right to remove them itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Leftovers:
    """From now on these files are removed at the end of this process, whatever ends it.

    The process that does so is a child, which has nothing else open and takes no signals that ask
    for an end.

    Args:
        paths: of files; one that is not there now, or was replaced until then, is nobody's matter.

    Raises:
        OSError: there can be no more processes.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        held: dict[str, int] = {}
        for path in map(os.path.abspath, paths):
            with suppress(FileNotFoundError):
                held[path] = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        end, self._alive = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._child = os.fork()
            if self._child == 0:
                _remove_afterwards(end, held)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for fd in (end, *held.values()):
            os.close(fd)

    def remove(self) -> None:
        """Now, at the end; returns when that is done."""
        os.close(self._alive)
        with suppress(ChildProcessError):
            os.waitpid(self._child, 0)


def _remove_afterwards(end: int, held: Mapping[str, int]) -> None:
    """The child. What holds the files keeps their inodes, so that no others have these numbers."""
    try:
        _close_others({end, *held.values()})
        os.read(end, 1)
        for path, fd in held.items():
            with suppress(OSError):
                if os.path.samestat(os.lstat(path), os.fstat(fd)):
                    os.unlink(path)
    finally:
        os._exit(0)


def _close_others(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))
