"""A format's own file on another disk: `qcow2:part:2:disk.img`.

What a driver reads and writes goes through the engine of the disk below, by threads, one at a time:
a driver sees a file that never answers at once, has no descriptor, and cannot grow, as on a block
device.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import IOFailedError, TapError, errno_of
from tapcore.files import ImageFile
from tapcore.interface.extent import Extent
from tapcore.interface.options import OpenOptions
from tapcore.interface.registry import Registry
from tapcore.opening.below import ImageBelow, below_of, open_given
from tapcore.opening.opening import Opening
from tapcore.process.workers import Completions, Lane

_FULL: Final = "the disk below is full"


class FileOnDisk(ImageFile):
    """The whole of a disk as an image's file.

    Args:
        below: the disk; closed with the file, and used by nobody else.
        path: its name.
        workers: the disk's share of the threads.
    """

    fixed_size = True

    def __init__(self, below: ImageBelow, path: str, workers: Lane) -> None:
        # not super(): there is no descriptor
        self.fd: Any = None
        self.path = path
        self.size = below.size
        self.read_only = below.read_only
        self.sector_size = below.sector_size
        self.in_flight = 0
        self._below = below
        self._alone = threading.Lock()
        self._completions = Completions()
        self.io_fd = self._completions.eventfd
        self._workers = workers
        self._writes = Lane(1, workers)
        self._throttled = False
        self._watched = 0
        self._closed = False

    # ---- content ----------------------------------------------------------------------------

    def _call(self, do: Callable[..., object], *args: Any) -> int:
        """Do it, and wait for it; returns 0 or -errno."""
        try:
            with self._alone:
                do(*args)
        except (OSError, TapError) as exc:
            return -errno_of(exc)
        return 0

    def read_now(self, offset: int, buf: memoryview) -> int | None:
        """Nothing is known to be in memory."""
        return None

    def write_now(self, offset: int, buf: memoryview) -> int | None:
        """Nothing is known not to wait."""
        return None

    def write_mapped(self, offset: int, content: memoryview, now: float) -> bool:
        """No part of it is a host file."""
        return False

    def metadata_now(self, offset: int, length: int) -> bytes | None:
        """Nothing is known to be in memory."""
        return None

    def read_blocking(self, offset: int, buf: memoryview) -> int:
        """Read all of `buf`, zeroes past the end."""
        there = max(min(len(buf), self.size - offset), 0)
        if there < len(buf):
            buf[there:] = bytes(len(buf) - there)
        return self._call(self._below.read_into, offset, buf[:there]) if there else 0

    def write_blocking(self, offset: int, buf: memoryview) -> int:
        """Write all of `buf`."""
        if offset + len(buf) > self.size:
            return -errno.ENOSPC
        return self._call(self._below.write, offset, buf)

    def flush_blocking(self) -> int:
        """All of the disk below."""
        return self._call(self._below.flush) if self.durable and not self.read_only else 0

    def discard_blocking(self, offset: int, length: int) -> int:
        """As the disk below does it."""
        length = max(min(length, self.size - offset), 0)
        return self._call(self._below.discard, offset, length) if length else 0

    def zero_blocking(self, offset: int, length: int, may_unmap: bool) -> int:
        """As the disk below does it."""
        if offset + length > self.size:
            return -errno.ENOSPC
        return self._call(self._below.zero, offset, length, may_unmap)

    def read_metadata(self, offset: int, length: int) -> bytes:
        """A range (bytes), zero padded past the end."""
        buf = bytearray(length)
        if res := self.read_blocking(offset, memoryview(buf)):
            raise OSError(-res, os.strerror(-res))
        return bytes(buf)

    def write_metadata(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write a range (bytes), whatever its alignment."""
        if res := self.write_blocking(offset, memoryview(data).cast("B")):
            raise OSError(-res, _FULL if res == -errno.ENOSPC else os.strerror(-res))

    def lies_on(self) -> list[str]:
        """Paths of the files that the disk consists of."""
        return self._below.files()

    # ---- its size ---------------------------------------------------------------------------

    def look_again(self) -> int:
        """It has one size."""
        return self.size

    def truncate_up(self, size: int) -> None:
        """It cannot grow."""
        if size > self.size:
            raise OSError(errno.ENOSPC, _FULL)

    def resize(self, size: int) -> None:
        """It cannot grow; what it does not need stays."""
        self.truncate_up(size)

    def occupied(self) -> int:
        """All of it."""
        return self.size

    # ---- what lies where --------------------------------------------------------------------

    @property
    def windows(self) -> None:
        """Nothing of it is in memory."""
        return

    def resident(self, offset: int, length: int) -> bool:
        """Nor sent from there."""
        return False

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Data and holes of a range, as (start, end, is data) in bytes."""
        first, last = offset >> SECTOR_SHIFT, -(-(offset + length) >> SECTOR_SHIFT)
        last = min(last, self.size >> SECTOR_SHIFT)
        with self._alone:
            found = list(self._below.extents(first, last - first)) if first < last else []
        for run in found:
            start, end = run.sector << SECTOR_SHIFT, run.end << SECTOR_SHIFT
            yield max(start, offset), min(end, offset + length), run.kind != "zero"
        if (past := max(last << SECTOR_SHIFT, offset)) < offset + length:
            yield past, offset + length, False

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """As `td_extents` yields it: in no file, as far as anybody is told."""
        for start, end, data in self.runs(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT):
            first, count = start >> SECTOR_SHIFT, (end - start) >> SECTOR_SHIFT
            yield Extent(first, count, "data" if data else "zero")

    # ---- its end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for what is in flight, flush, and close."""
        try:
            self.drain()
            if res := self.flush_blocking():
                message = f"the last flush failed: {os.strerror(-res)}"
                raise IOFailedError(message, image=self.path, errno=-res)
        finally:
            if self._workers.abandoned:
                self.abandon()
            else:
                self._release()

    def let_go(self) -> None:
        """In a forked child; the parent has it."""
        self._closed = True

    def abandon(self) -> None:
        """What has not begun never does; what threads have in hand is waited for."""
        if not self._closed:
            self._writes.abandon()
            self._workers.abandon()
            self._closed = True
            self._completions.close()
            self._below.abandon()

    def _release(self) -> None:
        self._closed = True
        self._completions.close()
        self._below.close()


def open_file_on_disk(
    opening: Opening, registry: Registry, name: str, flags: int, options: OpenOptions
) -> ImageFile:
    """The file of an image that the user named, as it is the name of another disk.

    Args:
        opening: how disks are opened.
        registry: the drivers.
        name: as the user gave it, without the image's own handle.
        flags: `TD_RDONLY` or 0.
        options: of the image.
    """
    inner = below_of(options, name)
    below = ImageBelow(open_given(opening, registry, name, flags, inner), opening)
    file = FileOnDisk(below, name, options.workers)
    file.durable = options.durable
    options.opened.add(file)
    return file
