"""The two ends of a file: all that is looked at to tell what it is."""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from tapcore.files.hostfile import host_file_size

HEAD_BYTES: Final = 68 << 10
"""Up to the super block of btrfs, which lies furthest from the start of all that is known."""

TAIL_BYTES: Final = 4096
"""Trailers are of 512 bytes; a zip archive's has a comment in it."""


class Sample(NamedTuple):
    """What of a file is looked at.

    Attributes:
        size: of the file, in bytes.
        head: its first bytes, HEAD_BYTES where it has them.
        tail: its last bytes, TAIL_BYTES where it has them.
        device: it is a block device.
    """

    size: int
    head: bytes
    tail: bytes
    device: bool = False

    def has(self, offset: int, magic: bytes) -> bool:
        """Whether bytes lie at an offset: from the start, or (negative) from the end."""
        if offset >= 0:
            return self.head.startswith(magic, offset)
        return -offset <= len(self.tail) and self.tail.startswith(magic, len(self.tail) + offset)

    def number(self, offset: int, width: int) -> int:
        """A little-endian number in the head; what is missing counts as zero."""
        return int.from_bytes(self.head[offset : offset + width], "little")

    def big(self, offset: int, width: int) -> int:
        """A big-endian number in the head; what is missing counts as zero."""
        return int.from_bytes(self.head[offset : offset + width].ljust(width, b"\0"), "big")


def read_sample(fd: int) -> Sample:
    """Of a regular file or block device.

    Raises:
        OSError: it cannot be read.
    """
    size = host_file_size(fd)
    head = os.pread(fd, HEAD_BYTES, 0)
    start = max(size - TAIL_BYTES, 0)
    tail = head[start:] if size <= len(head) else os.pread(fd, TAIL_BYTES, start)
    return Sample(size, head, tail, stat.S_ISBLK(os.fstat(fd).st_mode))
