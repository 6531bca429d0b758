"""The lane of a disk: where a front end moves bytes itself, between a socket and the page cache.

A range is in the lane where nothing has to see or change the data on its way, and where it is known
that nobody would have to wait. Whatever is not goes through the engine, which does everything.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import ClassVar, Final

from tapcore.buffers import ZEROES, fill_zeroes
from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.ordering import WriteOrder
from tapcore.files.imagefile import ImageFile
from tapcore.files.windows import MOST_WRITTEN
from tapcore.interface.models import DiskDriver
from tapcore.interface.places import ASK, NOWHERE, PlacedFile, PlacedWindows, Places

LONG: Final = 32 << 10
"""Bytes. A read that is longer is better told what is a hole, and is in the lane where none is."""


class Lane:
    """What of a disk lies so. Nothing that it hands out may be kept while others have their turn,
    but by who reads it out when the engine says that places are given up.

    Args:
        chain: the images, child first.
        order: which writes must wait for which.

    Attributes:
        file: in which the last place lies that could be written, and `file_end` the end of that.
        now: the time of the batch; see `begin`.
        losses: how often a file was found to have shrunk.
        plain_reads: what is read goes to who asked, and nobody uses the buffer for anything else.
    """

    __slots__ = (
        "_chain",
        "_child",
        "_first",
        "_last",
        "_mask",
        "_missed",
        "_order",
        "_plain",
        "_sector_mask",
        "_size",
        "_stop",
        "_used",
        "_whole",
        "_whole_file",
        "changes",
        "file",
        "file_end",
        "losses",
        "now",
        "plain_reads",
    )

    cache: ClassVar[str] = "writeback"
    """The cache mode of images that have it."""

    def __init__(self, order: WriteOrder) -> None:
        self._missed = -1
        self._order = order
        # of each image what says where its content lies, its way to say it, and its sectors
        self._chain: list[tuple[Places, Callable[[int, int], int], int]] = []
        self._whole = self._plain = self.plain_reads = False
        self._child: Places | None = None
        self._whole_file: PlacedFile | None = None
        self._size = self._mask = self._sector_mask = 0
        self._first = self._stop = 0
        self._used: set[PlacedWindows] = set()
        self._last: PlacedWindows | None = None
        self.file: PlacedFile
        self.file_end = 0
        self.now = 0.0
        self.losses = 0
        self.changes = 0

    def refresh(
        self, dd: DiskDriver, *, unit: int, writable: tuple[int, int], parents: bool
    ) -> None:
        """Take over what the chain says of itself, after open and resize.

        Args:
            dd: the child.
            unit: bytes of which the disk is read and written in whole multiples.
            writable: bytes of the disk, [start, end), that may be written without asking anybody.
            parents: what a parent holds may be read from there.
        """
        self._used.clear()
        self._last = None
        self._size, self._mask = dd.size << SECTOR_SHIFT, unit - 1
        self._sector_mask = self._mask >> SECTOR_SHIFT
        chain = list(dd.chain()) if parents else [dd]
        self._chain = []
        for image in chain:
            places = _places_of(image, self.cache)
            if places is None:
                break
            self._chain.append((places, places.place, image.size))
        self._whole = len(self._chain) == len(list(dd.chain()))
        self._child = self._chain[0][0] if self._chain and not dd.read_only else None
        self._whole_file = None
        if self._chain and getattr(self._chain[0][0], "whole", False):
            self._whole_file = self._chain[0][0].data
        self._first, self._stop = writable
        self._plain = not _is_looked_at(dd) and dd.drv.td_places(dd) is not None
        self.plain_reads = self._plain and parents

    @property
    def reads(self) -> bool:
        """Whether anything can be read so."""
        return bool(self._chain)

    @property
    def writes(self) -> bool:
        """Whether anything can be written so."""
        return self._child is not None

    def begin(self) -> None:
        """A batch of requests has come."""
        self.now = monotonic()

    # ---- places -----------------------------------------------------------------------------

    def to_read(self, offset: int, length: int) -> memoryview | None:
        """Where a range of the disk can be read from, without waiting.

        Args:
            offset: bytes.
            length: bytes, at least 1.

        Returns:
            Memory that may be a part of a host file (see `tapcore.files.mapping`); None: ask the
            engine.
        """
        if (offset | length) & self._mask or offset + length > self._size:
            return None
        whole = self._whole_file
        if whole is not None and length < LONG and offset + length <= whole.size:
            windows = whole.windows
            if windows is None:
                return None
            if windows is not self._last:
                self._note(windows)
            return windows.to_read(offset, length, self.now)
        sector, count = offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT
        for places, place, sectors in self._chain:
            if sector + count > sectors:
                return None
            where = place(sector, count)
            if where >= 0:
                file = places.data
                windows = file.windows
                if windows is None or where + length > file.size:
                    return None
                if windows is not self._last:
                    self._note(windows)
                if length < LONG:
                    return windows.to_read(where, length, self.now)
                return windows.data_to_read(where, length, self.now)
            if where != NOWHERE:
                return None
        return ZEROES[:length] if self._whole and length < LONG else None

    def data_of_whole(self, offset: int, length: int) -> int:
        """Where the disk is a file byte for byte, and all of a range (bytes) is data there: the
        descriptor of that file, at whose same offset it lies; else -1.
        """
        file = self._whole_file
        end = offset + length
        if file is None or end > self._size or end > file.size or not isinstance(file, ImageFile):
            return -1
        return file.fd if file.holes.run(offset, end) == (end, True) else -1

    def read(self, sector: int, nb_sectors: int, buf: memoryview) -> bool:
        """Read a range of the disk, at once.

        Args:
            sector: first sector.
            nb_sectors: how many, at least one.
            buf: to be filled.

        Returns:
            Whether it was. If not, ask the engine, which also finds out what is wrong.
        """
        if (sector | nb_sectors) & self._sector_mask:
            return False
        for places, place, sectors in self._chain:
            if sector + nb_sectors > sectors:
                return False
            where = place(sector, nb_sectors)
            if where >= 0:
                return places.data.read_now(where, buf) == 0
            if where != NOWHERE:
                return False
        if self._whole:
            fill_zeroes(buf)
        return self._whole

    def write(self, offset: int, content: memoryview) -> int | None:
        """Overwrite a range of the disk in place, at once.

        Args:
            offset: bytes.
            content: not empty.

        Returns:
            0: it is in the page cache. None: nothing is known to have been written; ask the engine,
            which also finds out what is wrong.
        """
        length = len(content)
        where = self._place_to_write(offset, length)
        if where < 0:
            return None
        file = self.file
        self.changes += 1
        if offset == self._missed:  # `to_write` has just looked
            self._missed = -1
        elif length <= MOST_WRITTEN and file.write_mapped(where, content, self.now):
            return 0
        return 0 if file.write_now(where, content) == 0 else None

    def to_write(self, offset: int, length: int) -> memoryview | None:
        """Where a range of the disk can be overwritten by the kernel's own copy, at once.

        Args:
            offset: bytes.
            length: at least 1, at most `tapcore.files.windows.MOST_WRITTEN`.

        Returns:
            Memory for `file.fill`, to be used before anything is asked of the disk but where to
            read and write; None: see `write`. The place ends at `file_end` of `file`.
        """
        where = self._place_to_write(offset, length)
        if where < 0:
            return None
        windows = self.file.windows
        if windows is None:
            return None
        target = windows.to_write(where, length, self.now)
        if target is None:
            self._missed = offset
        else:
            self.changes += 1
            self.file_end = where + length
        return target

    def _place_to_write(self, offset: int, length: int) -> int:
        """Where a range lies in `file`, if it may be overwritten there; else less than 0."""
        places = self._child
        if (
            places is None
            or (offset | length) & self._mask
            or offset < self._first
            or offset + length > self._stop  # and so of the disk
            or self._order.strict
            or places.busy
        ):
            return ASK
        file = self._whole_file
        if file is not None:
            where = offset
        else:
            where = places.place_to_write(offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT)
            if where < 0:
                return ASK
            file = places.data
        self.file = file
        return where if where + length <= file.size else ASK

    def plain_write(self, offset: int, length: int) -> bool:
        """Whether content of a range (bytes) is stored as it is given, and looked at by nobody."""
        return self._plain and self._first <= offset and offset + length <= self._stop

    def _note(self, windows: PlacedWindows) -> None:
        self._last = windows
        self._used.add(windows)

    # ---- what has come of it ----------------------------------------------------------------

    def holds(self) -> bool:
        """Whether every file from which something was handed out is still as long as it was.

        What was handed out must not be sent otherwise: the end of a file's last page reads as
        zeroes. Each file that has shrunk is told once, and counted in `losses`.
        """
        for windows in self._used:
            if windows.shrunk():
                break
        else:
            return True
        shrunk = [each for each in self._used if each is windows or each.shrunk()]
        self._used.difference_update(shrunk)
        self._last = None
        self.losses += 1
        return False

    def holds_last(self) -> bool:
        """The same of the file from which something was handed out last."""
        last = self._last
        return last is None or not last.shrunk() or self.holds()

    def failed(self) -> None:
        """A call met something that is not there."""
        for windows in self._used:
            windows.distrust()


def _places_of(dd: DiskDriver, cache: str) -> Places | None:
    """What an image says of itself, where nothing stands in the way.

    A filter must see each request, O_DIRECT must not go round the disk, and of a damaged disk
    somebody notes what is lost.
    """
    if _is_looked_at(dd) or dd.options.cache != cache:
        return None
    return dd.drv.td_places(dd)


def _is_looked_at(dd: DiskDriver) -> bool:
    options = dd.options
    return bool(options.filters or options.salvage or options.metadata_only)
