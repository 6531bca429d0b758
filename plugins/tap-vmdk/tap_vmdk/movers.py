"""What moves the bytes of a part of the disk, between buffers and a file.

Sectors in every call are those of the whole disk.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

import attrs

from tapcore import DiskDriver, Extent, ImageFile, TdCallback

Save = Callable[[], int]
"""Writes metadata to disk, in a thread: 0 or -errno."""


class Reader(Protocol):
    """Reads a part."""

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
        ...

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """As `td_extents`, for a range inside the part."""
        ...


class Writer:
    """Writes a part; this one refuses to, and has nothing to save.

    Attributes:
        writable: whether writes may change the part.
        compresses: it stores everything compressed.
    """

    writable: ClassVar[bool] = False
    compresses: ClassVar[bool] = False

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

    def lost(self) -> Iterator[tuple[int, int]]:
        """What lies past the end of the file: (sector of the disk, sector of the file)."""
        return iter(())

    def keep_free(self, end: int) -> None:
        """Nothing new may get a place before a sector of the file.

        Raises:
            OSError: the file could not be made longer.
        """

    def begin(self) -> None:
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


def file_extents(file: ImageFile, sector: int, nb: int, place: int) -> Iterator[Extent]:
    """What a file holds at a place, as extents of the disk.

    Args:
        file: with plain content.
        sector: of the disk.
        nb: sectors.
        place: sector of the file.
    """
    for extent in file.extents(place, nb):
        yield attrs.evolve(extent, sector=sector + extent.sector - place)
