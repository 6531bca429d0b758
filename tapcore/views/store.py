"""Where a view keeps what is written to it: a file without a name, in memory or in a directory.

Each sector lies in the file where it lies on the disk. A sector that is the view's own and has no
block in the file reads as zeroes.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Final

import attrs

from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import UsageError, describe
from tapcore.files.hostfile import occupied_bytes
from tapcore.files.imagefile import ImageFile
from tapcore.interface.extent import Extent
from tapcore.views.space import BLOCK, Space, Total
from tapcore.views.written import Written

log = logging.getLogger(__name__)

DEFAULT_LIMIT: Final = 1 << 30
"""Bytes that a view may take where nothing else is said."""


@attrs.frozen
class Room:
    """Where views keep what is written to them, and how much that may be.

    Attributes:
        directory: for files without a name; empty: memory.
        limit: bytes for each view.
        total: for all together.
    """

    directory: str = ""
    limit: int = DEFAULT_LIMIT
    total: Total = attrs.field(factory=lambda: Total(half_of_memory()))

    @classmethod
    def of(cls, directory: str = "", limit: int | None = None) -> Room:
        """As a user says it: without a limit it is 1 GiB for each view.

        Args:
            directory: for files without a name; empty: memory, of which all views together take
                half at most.
            limit: bytes for each view; None: the default.
        """
        most = Total(1 << 62) if directory else Total(half_of_memory())
        return cls(directory, DEFAULT_LIMIT if limit is None else limit, most)


def half_of_memory() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class Store:
    """What a view has of its own.

    Args:
        size: of the disk, in bytes.
        room: where, and how much.
        name: for messages.

    Attributes:
        file: as large as the disk.
        written: the sectors that are the view's own.

    Raises:
        UsageError: the file cannot be made, or not be so large.
    """

    def __init__(self, size: int, room: Room, name: str) -> None:
        self._name = name
        self._coming = 0
        self._told = False
        self.written = Written()
        fd = _nameless_file(room.directory)
        try:
            _lengthen(fd, size, room.directory)
            self.file = ImageFile(fd, room.directory or "memory", read_only=False)
        except BaseException:
            os.close(fd)
            raise
        self._limit = room.limit
        self._space = Space(room.limit, room.total, self._used)

    # ---- space ------------------------------------------------------------------------------

    def _used(self) -> int:
        """Bytes: what is noted of each run may not become more than the content either."""
        return max(self.used() + self._coming, len(self.written) * BLOCK)

    def used(self) -> int:
        """Bytes that its content takes."""
        return occupied_bytes(self.file.fd)

    def may_write(self, offset: int, length: int) -> bool:
        """Whether there is room for a range (bytes), some of which may have its place already."""
        if self._space.take(offset, length):
            return True
        for start, end, data in self.file.holes.runs(offset, offset + length):
            if not data and not self._space.take(start, end - start):
                return False
        return True

    def may_zero(self) -> bool:
        """Whether there is room to note one more run, for which no content is kept."""
        return len(self.written) * BLOCK < self._limit

    def full(self) -> int:
        """There is no room: told once; returns -ENOSPC."""
        if not self._told:
            self._told = True
            log.warning("%s: a view of it is full: writes to it fail", self._name)
        return -errno.ENOSPC

    def coming(self, length: int) -> None:
        """So many bytes are being written (negative: not any more), and do not count as used."""
        self._coming += length

    # ---- what it has ------------------------------------------------------------------------

    def note(self, sector: int, nb_sectors: int) -> None:
        """These sectors are its own from now on."""
        self.written.add(sector, sector + nb_sectors)

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """As `td_extents` yields them."""
        for start, end, own in self.written.runs(sector, sector + nb_sectors):
            if not own:
                yield Extent(start, end - start, "unallocated")
                continue
            for extent in self.file.extents(start, end - start):
                if extent.kind == "data":  # its file has no name that anybody could use
                    yield attrs.evolve(extent, filename="")
                else:
                    yield Extent(extent.sector, extent.nb_sectors, "zero")

    def resize(self, size: int) -> None:
        """Another size (bytes) of the disk; what is new is zeroes, whatever lies below."""
        old = self.file.size
        self.file.resize(size)
        if size < old:
            self.written.cut(size >> SECTOR_SHIFT)
        elif size > old:
            self.note(old >> SECTOR_SHIFT, (size - old) >> SECTOR_SHIFT)

    def reset(self, size: int) -> None:
        """Forget all that was written; nothing may be under way.

        Args:
            size: bytes, of the disk as it was in the beginning.
        """
        self.written.clear()
        self.file.resize(0)
        self.file.resize(size)
        self._space.give_back()
        self._told = False

    def close(self) -> None:
        """All is gone."""
        self.file.durable = False  # no disk has to be waited for
        self.file.close()
        self._space.give_back()


def _nameless_file(directory: str) -> int:
    """A file that nobody has to remove, however this process ends."""
    if not directory:
        return os.memfd_create("tapcore-view", os.MFD_CLOEXEC)
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # the latter of an old kernel
            raise UsageError(describe(exc), image=directory, errno=exc.errno) from None
    try:
        fd, path = tempfile.mkstemp(dir=directory)
    except OSError as exc:
        raise UsageError(describe(exc), image=directory, errno=exc.errno) from None
    os.unlink(path)
    return fd


def _lengthen(fd: int, size: int, directory: str) -> None:
    try:
        os.ftruncate(fd, size)
    except OSError as exc:
        text = f"has no files of {size} bytes: {describe(exc)}"
        raise UsageError(text, image=directory or "memory", errno=exc.errno) from None
