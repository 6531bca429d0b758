"""An open host file for whoever may wait for the disk: threads, and drivers at rest."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from tapcore.constants import DEFAULT_SECTOR_SIZE, SECTOR_SHIFT
from tapcore.errors import IOFailedError, errno_of
from tapcore.files.holes import HoleMap
from tapcore.files.hostfile import (
    host_file_size,
    logical_block_size,
    occupied_bytes,
    punch_hole,
    resize_host_file,
    zero_range,
)
from tapcore.files.linux import all_in_page_cache
from tapcore.files.reserving import NEW_WRITE, BlockReserver

if TYPE_CHECKING:
    from tapcore.interface.extent import Extent

log = logging.getLogger(__name__)

_SHRUNK: Final = "has become shorter while it was open"
_NO_PLACE: Final = "it names a place that no file has"


class BlockingFile:
    """A host file whose calls return when they are done.

    Offsets and lengths are bytes. A range may reach past the end of the file only within the last
    sector: what lies there reads as zeroes, and writing it makes the file whole sectors long.

    Args:
        fd: open; closed by who closes the file.
        path: of the file.
        read_only: whether it was opened so.

    Attributes:
        fd: the open descriptor.
        path: of the file.
        size: bytes, as opened or grown since.
        read_only: whether it was opened so.
        sector_size: bytes; smallest unit in which the file should be read and written.
        holes: where it has data.
    """

    durable = True
    """False: flushes do not wait for the disk (a new image that nobody relies on yet)."""

    def __init__(self, fd: int, path: str, *, read_only: bool) -> None:
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self.size = host_file_size(fd)
        self.sector_size = logical_block_size(fd)
        self.holes = HoleMap(fd)
        self._blocks = BlockReserver(fd)
        self._growing = threading.Lock()
        self._said_shrunk = False

    @cached_property
    def fixed_size(self) -> bool:
        """Whether it can neither grow nor shrink: a block device."""
        return stat.S_ISBLK(os.fstat(self.fd).st_mode)

    def lies_on(self) -> Sequence[str]:
        """Paths of the files of the disk that holds it; none: it is a host file itself."""
        return ()

    # ---- content ---------------------------------------------------------------------------

    def read_blocking(self, offset: int, buf: memoryview) -> int:
        """Read all of `buf`, zeroes past the end of the file; returns 0 or -errno."""
        while len(buf):
            size = self.size  # before the read: a write beside it may make the file longer
            try:
                count = os.preadv(self.fd, (buf,), offset)
            except OSError as exc:
                return -errno_of(exc)
            except OverflowError:  # a damaged table names a place that no file has
                return -errno.EIO
            if count == 0:
                return self._read_past_end(offset, buf, size)
            offset += count
            buf = buf[count:]
        return 0

    @staticmethod
    def _read_past_end(offset: int, buf: memoryview, size: int) -> int:
        if offset < size:  # the file has shrunk under us: that is no content to invent
            return -errno.EIO
        buf[:] = bytes(len(buf))
        return 0

    def write_blocking(self, offset: int, buf: memoryview) -> int:
        """Write all of `buf`; returns 0 or -errno."""
        end = offset + len(buf)
        if self._lost_by(end):
            return -errno.EIO
        most = NEW_WRITE if offset >= self.size or not self.durable else len(buf)
        if offset >= self.size:
            self._blocks.take(offset, len(buf))
        while len(buf):
            try:
                count = os.pwritev(self.fd, (buf[:most],), offset)
            except OSError as exc:
                return -errno_of(exc)
            except OverflowError:
                return -errno.EFBIG
            offset += count
            buf = buf[count:]
        if end > self.size:
            self._reaches(end)
        return 0

    def flush_blocking(self) -> int:
        """fdatasync; returns 0 or -errno."""
        try:
            if self.durable:
                self._flushing()
                os.fdatasync(self.fd)
        except OSError as exc:
            return -errno_of(exc)
        return 0

    def _flushing(self) -> None:
        """What was written so far is brought to the disk now; perhaps in a thread."""

    def make_safe(self) -> None:
        """Bring all that was written to the disk.

        Raises:
            OSError: as the system says.
        """
        if res := self.flush_blocking():
            raise OSError(-res, os.strerror(-res))

    def discard_blocking(self, offset: int, length: int) -> int:
        """Punch a hole; a file system without holes ignores it. Returns 0 or -errno."""
        try:
            self._punch(offset, length)
        except OSError as exc:
            return 0 if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL) else -errno_of(exc)
        return 0

    def zero_blocking(self, offset: int, length: int, may_unmap: bool) -> int:
        """Zero a range without writing; returns 0, or -EOPNOTSUPP where that is not possible."""
        try:
            if may_unmap:
                self._punch(offset, length)
            elif self._lost_by(offset + length):
                return -errno.EIO
            else:
                zero_range(self.fd, offset, length)
        except OSError as exc:
            return -errno_of(exc)
        return 0

    def _punch(self, offset: int, length: int) -> None:
        if self._lost_by(offset + length):
            raise OSError(errno.EIO, _SHRUNK)
        # nothing lies past the end; `size` is not asked, as threads that make the file longer side
        # by side may leave it too small, and content would stay
        length = min(length, max(host_file_size(self.fd) - offset, 0))
        if length:
            punch_hole(self.fd, offset, length)
            self._punched()

    def _punched(self) -> None:
        """There is a hole that was not there; perhaps in a thread."""
        self.holes.forget()

    # ---- metadata: any alignment, through the page cache in either cache mode ----------------

    @property
    def meta_fd(self) -> int:
        """A descriptor of the file that goes through the page cache."""
        return self.fd

    def read_metadata(self, offset: int, length: int) -> bytes:
        """A range (bytes), zero padded past the end of the file; waits for the disk.

        Raises:
            OSError: as the system says.
        """
        parts = []
        left = length
        while left:
            size = self.size  # before the read: a write beside it may make the file longer
            try:
                part = os.pread(self.meta_fd, left, offset)
            except OverflowError:
                raise OSError(errno.EIO, _NO_PLACE) from None
            if not part and offset < size:
                raise OSError(errno.EIO, _SHRUNK)
            if not part:
                parts.append(bytes(left))
                break
            parts.append(part)
            offset += len(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_metadata(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write a range (bytes) into the page cache, whatever its alignment.

        Raises:
            OSError: as the system says.
        """
        view = memoryview(data).cast("B")
        end = offset + len(view)
        if self._lost_by(end):
            raise OSError(errno.EIO, _SHRUNK)
        while len(view):
            try:
                count = os.pwritev(self.meta_fd, (view,), offset)
            except OverflowError:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG)) from None
            offset += count
            view = view[count:]
        self._reaches(end)

    # ---- its end ---------------------------------------------------------------------------

    def _reaches(self, end: int) -> None:
        """The file is at least so long (bytes): the loop and threads may find that side by side."""
        with self._growing:
            if end > self.size:
                self.size = end

    def _lost_by(self, end: int) -> bool:
        """Whether somebody else has cut off what lies before a write's end (bytes).

        The write would make the file longer again, and what was lost would read as zeroes.
        """
        size = self.size  # before the look: a write beside this one may make the file longer
        real = os.lseek(self.fd, 0, os.SEEK_END)  # a third of what fstat costs
        if real >= size or real >= end:
            return False
        if not self._said_shrunk:
            self._said_shrunk = True
            log.error("%s: %s; nothing is written past its new end", self.path, _SHRUNK)
        return True

    def look_again(self) -> int:
        """The file's size (bytes), which somebody else may have made larger since."""
        self._reaches(host_file_size(self.fd))
        return self.size

    def truncate_up(self, size: int) -> None:
        """Make the file at least `size` bytes long; what is new is a hole.

        Nobody may be writing past `size` meanwhile: that would be cut off.

        Raises:
            OSError: as the system says; ENOSPC for a block device that is shorter.
        """
        if size <= os.lseek(self.fd, 0, os.SEEK_END):
            return
        if self._lost_by(size):
            raise OSError(errno.EIO, _SHRUNK)
        if self.fixed_size:
            raise OSError(errno.ENOSPC, "the block device is full")
        os.ftruncate(self.fd, size)
        self._reaches(size)

    def resize(self, size: int) -> None:
        """Change the file's length (bytes)."""
        before = self.size
        self.size = min(before, size)  # what another thread misses now was cut off on purpose
        try:
            resize_host_file(self.fd, size)
        except BaseException:
            self.size = before
            raise
        self.size = size
        self.holes.forget()

    @property
    def sectors(self) -> int:
        """The file's size in sectors, a part of one counting as one."""
        return (self.size + DEFAULT_SECTOR_SIZE - 1) >> SECTOR_SHIFT

    def occupied(self) -> int:
        """Bytes that the file really takes on its file system."""
        return occupied_bytes(self.fd)

    # ---- what lies where -------------------------------------------------------------------

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Data and holes of a range, as (start, end, is data) in bytes.

        Raises:
            IOFailedError: the file has become shorter, and what is missing is no hole.
        """
        for start, end, data in self.holes.runs(offset, offset + length):
            needed = min(end, self.size)  # asked for before the file's length
            if needed > host_file_size(self.fd):
                raise IOFailedError(_SHRUNK, image=self.path, errno=errno.EIO)
            yield start, end, data

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """The same as `td_extents` yields it, for a driver whose disk is the file."""
        from tapcore.interface.extent import Extent

        start, stop = sector << SECTOR_SHIFT, (sector + nb_sectors) << SECTOR_SHIFT
        done = sector
        for _, end, data in self.runs(start, stop - start):
            until = -(-end >> SECTOR_SHIFT) if data else end >> SECTOR_SHIFT
            until = min(until, sector + nb_sectors)
            if end >= stop:
                until = sector + nb_sectors
            if until <= done:  # a run that ends inside a sector that is data already
                continue
            where = done << SECTOR_SHIFT
            if data:
                yield Extent(done, until - done, "data", self.fd, self.path, where)
            else:  # a hole has its place in the file too, and qemu-img map shows it
                yield Extent(done, until - done, "zero", None, self.path, where)
            done = until

    def resident(self, offset: int, length: int) -> bool:
        """Whether the page cache holds the whole range, so that sendfile would not block."""
        return all_in_page_cache(self.fd, offset, length)
