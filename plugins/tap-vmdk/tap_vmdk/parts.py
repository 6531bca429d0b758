"""The parts that a disk consists of: an extent line of the descriptor, open.

Sectors in every call are those of the whole disk.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from tap_vmdk.descriptor import ExtentLine
from tapcore import DiskDriver, Extent, ImageFile, TdCallback

Save = Callable[[], int]
"""Writes metadata to disk, in a thread: 0 or -errno."""


class Part:
    """One extent of a disk; this one can neither be read nor written (NOACCESS).

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.

    Attributes:
        line: as given.
        start: as given.
        end: first sector past it.
        file: that it lies in, None where it has none.
        writable: whether writes may change it.
        unit: bytes in which it must be written.
        cluster: bytes in which space is taken; 0 where that does not matter.
        reason: why it cannot be written, where it cannot.
    """

    unit = 512
    cluster = 0
    reason = "its description says that it must not be used"

    def __init__(self, line: ExtentLine, start: int) -> None:
        self.line = line
        self.start = start
        self.end = start + line.sectors
        self.file: ImageFile | None = None
        self.writable = False

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """As `td_queue_read`, for a range inside the part; never -EBUSY."""
        return cb(dd, -errno.EACCES, sector, nb, id, prv)

    def write(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """As `td_queue_write`, for a range inside the part; never -EBUSY."""
        return cb(dd, -errno.EACCES, sector, nb, id, prv)

    def zero(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """As `td_queue_write_zeroes`."""
        return cb(dd, -errno.EOPNOTSUPP, sector, nb, id, prv)

    def discard(
        self, dd: DiskDriver, sector: int, nb: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """As `td_queue_discard`."""
        return cb(dd, 0, sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """As `td_extents`."""
        yield Extent(sector, nb, "compressed")

    def lost(self) -> Iterator[tuple[int, int]]:
        """What lies past the end of the file: (sector of the disk, sector of the file)."""
        return iter(())

    def keep_free(self, end: int) -> None:
        """Nothing new may get a place before a sector of the file.

        Raises:
            OSError: the file could not be made longer.
        """

    def begin_writing(self) -> None:
        """The first write is about to come."""

    def unsaved(self) -> Save | None:
        """What a flush has to do once the content written so far is on disk; None: nothing.

        It covers what was answered before the call. When it is over, `saved` is called.
        """
        return None

    def saved(self, ok: bool) -> None:
        """What `unsaved` returned is on disk; or it was not done, or has failed.

        Args:
            ok: False: all of it is to be done again.
        """

    def finish(self) -> None:
        """The last flush is done, and the file is about to be closed.

        Raises:
            OSError: as the system says.
        """

    def describe(self) -> dict[str, Any]:
        """For `info`."""
        found: dict[str, Any] = {
            "type": self.line.kind,
            "access": self.line.access,
            "size": self.line.sectors * 512,
        }
        if self.line.name:
            found["filename"] = self.line.name
        return found


class ZeroPart(Part):
    """Nothing but zeroes, which cannot be written."""

    reason = "it is an extent of zeroes, which cannot be written"

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Zeroes, whatever a parent holds."""
        buf[:] = bytes(len(buf))
        return cb(dd, 0, sector, nb, id, prv)

    def zero(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """It is so already."""
        return cb(dd, 0, sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """One."""
        yield Extent(sector, nb, "zero")


class FlatPart(Part):
    """Content as it is, in a file.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        file: open.
    """

    reason = "its description says that it must not be written"

    def __init__(self, line: ExtentLine, start: int, file: ImageFile) -> None:
        super().__init__(line, start)
        self.file: ImageFile = file
        self.writable = line.access == "RW" and not file.read_only
        self.unit = file.sector_size
        self._shift = (line.offset - start) << 9  # from a place on the disk to one in the file

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """From the page cache at once, else later."""
        offset = (sector << 9) + self._shift
        res = self.file.read_now(offset, buf)
        if res is None:
            return self.file.queue_read(offset, buf, (cb, dd, sector, nb, id, prv))
        return cb(dd, res, sector, nb, id, prv)

    def write(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Into the page cache at once, else later."""
        offset = (sector << 9) + self._shift
        res = self.file.write_now(offset, buf)
        if res is None:
            return self.file.queue_write(offset, buf, (cb, dd, sector, nb, id, prv))
        return cb(dd, res, sector, nb, id, prv)

    def zero(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """As the file system can."""
        offset = (sector << 9) + self._shift
        self.file.queue_zero(offset, nb << 9, may_unmap, (cb, dd, sector, nb, id, prv))
        return 0

    def discard(
        self, dd: DiskDriver, sector: int, nb: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """Punch a hole."""
        offset = (sector << 9) + self._shift
        self.file.queue_discard(offset, nb << 9, (cb, dd, sector, nb, id, prv))
        return 0

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """Data and holes, as the file system knows them."""
        return moved(self.file, sector, nb, sector + (self._shift >> 9))


def moved(file: ImageFile, sector: int, nb: int, place: int) -> Iterator[Extent]:
    """What a file holds at a place, as extents of the disk.

    Args:
        file: with plain content.
        sector: of the disk.
        nb: sectors.
        place: sector of the file.
    """
    for extent in file.extents(place, nb):
        yield attrs.evolve(extent, sector=sector + extent.sector - place)
