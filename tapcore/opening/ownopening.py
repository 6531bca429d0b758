"""Drivers that open their path by themselves: whether they got the file that was judged."""

from __future__ import annotations

import contextlib
import os
import stat

from tapcore.interface.boundfile import BoundFile
from tapcore.interface.identity import Identity, identity_in, identity_of


class OpenedByItself:
    """Watches a driver that may open its path by itself, and not by `open_image_file`.

    What it got is looked at afterwards, by the name and by the descriptors that it holds. That is
    less than what `open_image_file` promises: a file that it has closed again is not seen.

    Args:
        bound: the file that it is to open; None: there is nothing to watch.
    """

    def __init__(self, bound: BoundFile | None) -> None:
        self._bound = bound
        self._before = _open_files() if bound is not None and bound.judged else {}

    def another_file(self) -> bool:
        """Whether it seems to have got another file."""
        bound = self._bound
        if bound is None or bound.opened:
            return False
        if identity_of(bound.real) != bound.identity:
            return True
        if not bound.judged:
            return False
        new = [file for fd, file in _open_files().items() if self._before.get(fd) != file]
        return bool(new) and bound.identity not in new


def _open_files() -> dict[int, Identity]:
    """The plain files and block devices that this process has open, by their descriptors."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # /proc is not mounted
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the one that listed the folder
                status = os.fstat(int(name))
                if stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFBLK):
                    found[int(name)] = identity_in(status)
    return found
