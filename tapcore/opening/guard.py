"""Disks that are written and whose format was guessed: they stay what they were taken for."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from tapcore.formats.foreign import HEAD_BYTES, TAIL_BYTES, Sample, Signature, what_it_says_it_is
from tapcore.interface.registry import Registry
from tapcore.opening.probe import recognise


class ContentGuard(NamedTuple):
    """For a raw image that was found by probing: would it still be raw at the next probing?

    A guest could otherwise write a header that names a host file, and have it opened the next time
    the image is probed; or one that makes it refuse to open.

    Attributes:
        path: of the image.
        registry: the drivers to ask.
        device: it is a block device.
        head: bytes at the disk's start that tell what it is.
        tail: bytes at its end.
    """

    path: str
    registry: Registry
    device: bool = False
    head: int = HEAD_BYTES
    tail: int = TAIL_BYTES

    def reason(self, head: bytes, tail: bytes, size: int) -> str:
        """Why the disk must not become what it would be; "" where it may.

        Args:
            head: its first `head` bytes as they would be, or all.
            tail: its last `tail` bytes as they would be, or all.
            size: of the disk, bytes.
        """
        seen = self.looks_like(head, tail, size)
        if not seen:
            return ""
        return f"it would make a raw image look like {seen}; name its handle to allow that"

    def looks_like(self, head: bytes, tail: bytes, size: int) -> str:
        """What such a disk would be taken for at the next probing; "" for a raw disk.

        Args:
            head: its first `head` bytes, or all.
            tail: its last `tail` bytes, or all.
            size: bytes.
        """
        sample = Sample(size, head, tail, self.device)
        if seen := recognise(self.path, sample, self.registry):
            return seen
        found = self._foreign(sample)
        return found.name if found is not None and not found.raw else ""

    def _foreign(self, sample: Sample) -> Signature | None:
        """The file may end inside the disk's last sector."""
        found = what_it_says_it_is(sample)
        try:
            short = -os.stat(self.path).st_size % 512
        except OSError:
            short = 0  # gone by now; whoever finds the disk again finds another file
        if found is None and short and not self.device:
            cut = sample.tail[: len(sample.tail) - short]
            found = what_it_says_it_is(sample._replace(size=sample.size - short, tail=cut))
        return found


def guard_of(path: str, registry: Registry) -> ContentGuard:
    """The guard of a raw image that was found by probing."""
    try:
        device = stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        device = False
    return ContentGuard(path, registry, device)
