"""Parts without tables: flat extents, extents of zeroes, and those that must not be used."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.movers import Writer, file_extents
from tap_vmdk.parts.part import Part
from tapcore import DiskDriver, Extent, ImageFile, TdCallback

# ---- flat extents ------------------------------------------------------------------------------


def flat_part(line: ExtentLine, start: int, file: ImageFile) -> Part:
    """Content as it is, in a file.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        file: open.
    """
    shift = line.offset - start
    writing = line.access == "RW" and not file.read_only
    return Part(
        line,
        start,
        FlatReader(file, shift),
        FlatWriter(file, shift) if writing else Writer(),
        file=file,
        unit=file.sector_size,
        reason="its description says that it must not be written",
    )


class FlatReader:
    """Reads content as it is.

    Args:
        file: that it lies in.
        shift: from a sector of the disk to one of the file.
    """

    def __init__(self, file: ImageFile, shift: int) -> None:
        self._file = file
        self._shift = shift << 9

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
        res = self._file.read_now(offset, buf)
        if res is None:
            return self._file.queue_read(offset, buf, (cb, dd, sector, nb, id, prv))
        return cb(dd, res, sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """Data and holes, as the file system knows them."""
        return file_extents(self._file, sector, nb, sector + (self._shift >> 9))


class FlatWriter(Writer):
    """Writes content as it is; arguments as of `FlatReader`."""

    writable = True

    def __init__(self, file: ImageFile, shift: int) -> None:
        self.file = file
        self._shift = shift << 9

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


# ---- extents that lie in no file ---------------------------------------------------------------


def zero_part(line: ExtentLine, start: int) -> Part:
    """Nothing but zeroes, which cannot be written; arguments as of `flat_part`."""
    reason = "it is an extent of zeroes, which cannot be written"
    return Part(line, start, ZeroReader(), ZeroWriter(), reason=reason)


class ZeroReader:
    """Reads zeroes, whatever a parent holds."""

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
        """At once."""
        buf[:] = bytes(len(buf))
        return cb(dd, 0, sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """One."""
        yield Extent(sector, nb, "zero")


class ZeroWriter(Writer):
    """Refuses to write anything but zeroes."""

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


def barred_part(line: ExtentLine, start: int) -> Part:
    """Can neither be read nor written (NOACCESS); arguments as of `flat_part`."""
    reason = "its description says that it must not be used"
    return Part(line, start, BarredReader(), reason=reason)


class BarredReader:
    """Refuses to read."""

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
        """Fails."""
        return cb(dd, -errno.EACCES, sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """Something, of which nothing is known."""
        yield Extent(sector, nb, "compressed")
