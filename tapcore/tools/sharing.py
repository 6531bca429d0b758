"""Copies that move nothing: where the file system can, two files share the blocks that are equal.

Where it cannot, content goes through memory: that leaves zeroes out, and measures quicker than
copy_file_range, with which the kernel would copy page by page.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from tapcore.tools.opening import Progress
from tapcore.tools.plan import Job

_FICLONERANGE: Final = 0x4020940D
_CLONE_RANGE: Final = struct.Struct("qQQQ")  # struct file_clone_range
_BLOCK: Final = 4096
_MOST: Final = 1 << 30


class BlockSharing:
    """A raw target whose blocks may be those of the source's files.

    Args:
        path: of the target, a plain file whose content is the disk's.
        progress: told how far it is, as (bytes, bytes); what it raises stops the work.
        total: the disk's size, bytes.

    Attributes:
        shared: bytes that were not copied.
    """

    def __init__(self, path: str, progress: Progress | None, total: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._progress = progress
        self._total = total
        self._possible = True
        self.shared = 0

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)

    def filter(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Do what can be done by sharing; yield what is left to be copied."""
        for job in jobs:
            if job.extent is None or job.extent.fd is None or not self._possible:
                yield job
                continue
            offset = job.extent.offset + job.start - job.extent.start
            until = self._share(job, job.extent.fd, offset)
            if until < job.end:
                yield Job(until, job.end, job.how)

    def _share(self, job: Job, fd: int, offset: int) -> int:
        """Share whole blocks from the start of a job on; returns where that ended (bytes)."""
        at, shift = job.start, offset - job.start
        if (at | offset) % _BLOCK:
            return at
        while at < job.end:
            length = min(_MOST, (job.end - at) // _BLOCK * _BLOCK)
            if not length or not self._clone(fd, at + shift, length, at):
                break
            at += length
            self.shared += length
            if self._progress is not None:
                self._progress(at, self._total)
        return at

    def _clone(self, fd: int, offset: int, length: int, at: int) -> bool:
        try:
            fcntl.ioctl(self._fd, _FICLONERANGE, _CLONE_RANGE.pack(fd, offset, length, at))
        except OSError:  # another file system, or one without it: not asked again
            self._possible = False
        return self._possible
