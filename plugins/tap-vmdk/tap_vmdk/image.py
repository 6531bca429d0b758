"""An open image: its descriptor, its parts, and requests on their way to them."""

from __future__ import annotations

import errno
import logging
import os
import select
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from tap_vmdk.descriptor.place import DescriptorPlace
from tap_vmdk.descriptor.text import Descriptor
from tap_vmdk.flusher import Flusher
from tap_vmdk.parts.part import Part
from tap_vmdk.sparse.header import SparseHeader
from tapcore import DiskDriver, Extent, ImageFile, ImageFormatError, TdCallback

log = logging.getLogger(__name__)


class Image:
    """What `dd.private` is.

    Args:
        file: the file that the image is named by.
        descriptor: None for a sparse file that has none.
        place: where the descriptor is.
        subformat: for people, and for `info`.
        header: of the file, where it is a hosted sparse file.

    Attributes:
        file: as given.
        descriptor: as given.
        place: as given.
        subformat: as given.
        header: as given.
        parts: in the order of the disk; none where only metadata is wanted.
        sectors: of the disk.
        files: all that are open, the image's own first.
        named: those of the extents, by name and access.
        stored: of each of these files (device, inode), whether it is a sparse one.
        changed: something was written since it was opened.
        goes_on: with writing, where grains are missing, and is told what is wrong: a server does.
        read: as `td_queue_read`.
        write: as `td_queue_write`.
        flusher: does the flushes.
    """

    def __init__(
        self,
        file: ImageFile,
        descriptor: Descriptor | None,
        place: DescriptorPlace | None,
        subformat: str,
        header: SparseHeader | None = None,
    ) -> None:
        self.file = file
        self.descriptor = descriptor
        self.place = place
        self.subformat = subformat
        self.header = header
        self.parts: list[Part] = []
        self.sectors = 0
        self.files = [file]
        self.named: dict[tuple[str, str], ImageFile] = {}
        self.stored: dict[tuple[int, int], bool] = {}
        self.changed = False
        self.goes_on: Callable[[str], None] | None = None
        self.read: Callable[..., int] = self._read
        self.write: Callable[..., int] = self._first_write
        self._starts: list[int] = []
        self._epoll: select.epoll | None = None
        self._by_fd: dict[int, ImageFile] = {}
        self.flusher = Flusher([], [])

    def set_parts(self, parts: list[Part]) -> None:
        """Take the parts over, in the order of the disk."""
        self.parts = parts
        self._starts = [part.start for part in parts]
        self.sectors = parts[-1].end
        for part in parts:
            if part.file is not None and part.file not in self.files:
                self.files.append(part.file)
        for file in self.files:
            file.keeps_overflow = True
        if len(parts) == 1:
            self.read = parts[0].reader.read
        if self.file.read_only:
            self.write = self._refuse
        elif self.changed:
            self.write = parts[0].writer.write if len(parts) == 1 else self._write
        if self._epoll is not None:
            self._poll_files()
        written = [file for file in self.files if not file.read_only]
        self.flusher = Flusher(written, parts)

    def pollable(self) -> int:
        """A descriptor that is readable when a file has answers, also of those opened later."""
        if len(self.files) == 1 and self.parts:
            return self.file.io_fd
        self._epoll = select.epoll()
        self._poll_files()
        return self._epoll.fileno()

    def _poll_files(self) -> None:
        assert self._epoll is not None
        for file in self.files:
            if file.io_fd not in self._by_fd:
                self._epoll.register(file.io_fd, select.EPOLLIN)
                self._by_fd[file.io_fd] = file

    # ---- requests ---------------------------------------------------------------------------

    def _part(self, sector: int) -> Part:
        return self.parts[bisect_right(self._starts, sector) - 1]

    def _read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Of a disk with several parts."""
        part = self._part(sector)
        if sector + nb <= part.end:
            return part.reader.read(dd, sector, nb, buf, cb, id, prv)
        finished = 0
        for part, first, count in self._pieces(sector, nb):
            piece = buf[(first - sector) << 9 : (first - sector + count) << 9]
            finished += part.reader.read(dd, first, count, piece, cb, id, prv)
        return finished

    def _write(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        finished = 0
        for part, first, count in self._pieces(sector, nb):
            piece = buf[(first - sector) << 9 : (first - sector + count) << 9]
            finished += part.writer.write(dd, first, count, piece, cb, id, prv)
        return finished

    def _first_write(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        self.begin_writing()
        return self.write(dd, sector, nb, buf, cb, id, prv)

    @staticmethod
    def _refuse(*_: Any) -> int:
        return -errno.EROFS

    def begin_writing(self, cid: int | None = None) -> None:
        """Before the first change after each open: give the content another id.

        Args:
            cid: the new one; None: any.

        Raises:
            OSError: as the system says; nothing may be written then.
            ImageFormatError: grains are missing.
        """
        if self.changed:
            return
        if self.file.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        for part in self.parts:
            if part.writer.writable:
                self._keep_what_is_lost(part)
        if self.descriptor is not None and self.place is not None:
            if cid is None:
                self.descriptor.new_cid(self.place.cid_digits())
            else:
                self.descriptor.set("CID", f"{cid:08x}")
            self.place.write_cid(self.descriptor)
        for part in self.parts:
            if part.writer.writable:
                part.writer.begin()
        self.changed = True
        self.write = self.parts[0].writer.write if len(self.parts) == 1 else self._write

    def _keep_what_is_lost(self, part: Part) -> None:
        """New grains must not lie where a table says that others are, past the end of the file.

        Raises:
            ImageFormatError: such grains are missing; not for a server, which goes on behind them.
        """
        lost = list(part.writer.lost())
        if not lost:
            return
        many = "1 grain that lies" if len(lost) == 1 else f"{len(lost)} grains that lie"
        text = (
            f"has {many} past the end of the file (the first at {lost[0][0] << 9} of the disk, "
            f"sector {lost[0][1]} of the file)"
        )
        if self.goes_on is None:
            raise ImageFormatError(
                f"{text}: it is damaged, and not written; convert --salvage copies what is there, "
                "check --repair all makes the rest zeroes",
                errno=errno.EIO,
            )
        self.goes_on(text)
        part.writer.keep_free(max(place for _, place in lost) + (part.cluster >> 9))

    def _pieces(self, sector: int, nb: int) -> Iterator[tuple[Part, int, int]]:
        """The parts of a range, as (part, first sector, sectors)."""
        end = sector + nb
        number = bisect_right(self._starts, sector) - 1
        while sector < end:
            part = self.parts[number]
            count = min(part.end, end) - sector
            yield part, sector, count
            sector += count
            number += 1

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
        self.begin_writing()
        return sum(
            part.writer.zero(dd, first, count, may_unmap, cb, id, prv)
            for part, first, count in list(self._pieces(sector, nb))
        )

    def discard(
        self, dd: DiskDriver, sector: int, nb: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """As `td_queue_discard`."""
        self.begin_writing()
        return sum(
            part.writer.discard(dd, first, count, cb, id, prv)
            for part, first, count in list(self._pieces(sector, nb))
        )

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """As `td_extents`."""
        for part, first, count in self._pieces(sector, nb):
            yield from part.reader.extents(first, count)

    def submit(self) -> None:
        """As `td_submit`."""
        for file in self.files:
            file.submit()

    def reap(self) -> int:
        """As `td_do_callbacks`; what callbacks have queued is handed on too."""
        if self._epoll is None:
            finished = self.file.reap()
            self.file.submit()
            return finished
        finished = sum(self._by_fd[fd].reap() for fd, _ in self._epoll.poll(0))
        self.submit()
        return finished

    # ---- the end ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Wait until nothing is under way, whatever leads to what."""
        while any(file.in_flight for file in self.files):
            for file in self.files:
                file.drain()

    def close(self) -> None:
        """Finish, flush and release everything.

        Raises:
            OSError, TapError: the last flush failed; everything is released all the same.
        """
        with ExitStack() as stack:
            for file in self.files:
                stack.callback(file.close)
            if self._epoll is not None:
                stack.callback(self._epoll.close)
            self.drain()
            if self.changed:
                self.flusher.flush_blocking()
                for part in self.parts:
                    if part.writer.writable:
                        part.writer.finish()
