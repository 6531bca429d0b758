"""Asking a file system for the blocks of a long write before it is made, where that is quicker.

ext4 reserves the place of every block that is written into a hole on its own: a third of the time
of a long write through the page cache. Blocks that were asked for at once are only filled in. XFS
and tmpfs gain nothing by it, and btrfs would not compress what is written there.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from tapcore.files.linux import (
    EXT4_MAGIC,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    fallocate,
    file_system_magic,
)

LONG_WRITE: Final = 256 << 10
"""Bytes; for less, asking costs about what it saves."""

NEW_WRITE: Final = 256 << 10
"""Bytes that are written by one call where the page cache holds nothing yet. For more the kernel
takes longer runs of free memory, and the longest are those that nobody has used yet: a virtual
machine has to ask its host for them, which takes up to six times as long as the copy."""

_ROOMY: Final = 4
"""Of what is to be taken, so many times must be free: nobody may meet a full disk because of it."""


_BELIEVED: Final = 32 << 20
"""Bytes that are taken before it is looked again whether there is room."""


class BlockReserver:
    """The blocks of one file.

    Args:
        fd: open for writing.
    """

    __slots__ = ("_fd", "_helps", "_sure")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._helps: bool | None = None
        self._sure = 0  # bytes for which there was room when it was looked at

    @property
    def helps(self) -> bool:
        """Whether the file lies where taking blocks is quicker."""
        if self._helps is None:
            try:
                plain = stat.S_ISREG(os.fstat(self._fd).st_mode)
                self._helps = plain and file_system_magic(self._fd) == EXT4_MAGIC
            except Exception:  # a Python without ctypes, too: it is only for speed
                self._helps = False
        return self._helps

    def take(self, offset: int, length: int) -> bool:
        """Take the blocks of a write that comes next; neither content nor the file's size change.

        Args:
            offset: bytes; from there on the file holds nothing yet.
            length: bytes.

        Returns:
            False where that does not help, or goes wrong, which is left for the write to meet, and
            to tell of; some blocks may have been taken all the same.
        """
        if length < LONG_WRITE or not self.helps or not self._has_room(length):
            return False
        try:
            fallocate(self._fd, FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:  # ext2 and ext3 have the same magic
                self._helps = False
            return False
        return True

    def _has_room(self, length: int) -> bool:
        if length <= self._sure:
            self._sure -= length
            return True
        try:
            system = os.fstatvfs(self._fd)
        except OSError:
            return False
        room = system.f_bavail * system.f_frsize // _ROOMY
        self._sure = min(max(room - length, 0), _BELIEVED)
        return room >= length

    def give_back(self, offset: int, length: int) -> None:
        """Give back the blocks of a range (bytes) before the file's end, which holds nothing."""
        with suppress(OSError):
            fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
