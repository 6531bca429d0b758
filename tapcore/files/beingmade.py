"""Which files the image consists of that a thread is making, for whoever opens one by its name.

See `newfiles`, which makes them, and is not loaded where nothing is made.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, Protocol


class FilesOfNewImage(Protocol):
    """What has to be known of `newfiles.NewFiles`."""

    def has(self, path: str) -> bool:
        """Whether a file of that final name is one of them."""

    def create(self, path: str) -> int:
        """Make one; returns a descriptor."""

    def reopen(self, path: str, flags: int) -> int | None:
        """Open one (`os.O_*`); None: it is none of them."""

    def take_back(self, path: str) -> None:
        """Make none of that name after all."""

    def supersede(self, path: str) -> None:
        """Let a file go when the new ones take their places."""


CURRENT: Final[ContextVar[FilesOfNewImage | None]] = ContextVar("tapcore_new_files", default=None)


def new_files() -> FilesOfNewImage | None:
    """The set that files belong to which this thread creates, where it makes an image."""
    return CURRENT.get()


def new_fd(path: str, flags: int) -> int | None:
    """Open a file that is being made.

    Args:
        path: its final name.
        flags: `os.O_*` access mode and more.

    Returns:
        A descriptor; None where this thread makes no such file.
    """
    files = CURRENT.get()
    return None if files is None else files.reopen(path, flags)


def is_being_made(path: str) -> bool:
    """Whether this thread makes a file of that final name, which is not there yet."""
    files = CURRENT.get()
    return files is not None and files.has(path)
