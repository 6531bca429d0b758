"""An open image: its descriptor, its parts, and the files of both."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from contextlib import ExitStack

from tap_vmdk.descriptor.ids import changed_now
from tap_vmdk.descriptor.place import DescriptorPlace
from tap_vmdk.descriptor.text import Descriptor
from tap_vmdk.facts import Facts
from tap_vmdk.parts.append import StreamMap
from tap_vmdk.parts.disk import PartedDisk
from tap_vmdk.parts.part import Part
from tap_vmdk.sparse.header import SparseHeader
from tap_vmdk.sparse.missing import lost_grains
from tap_vmdk.sparse.writable import WritableGrainMap
from tapcore import ImageFile, ImageFormatError


class Image(Facts):
    """What `dd.private` is; arguments as of `Facts`.

    Attributes:
        parts: in the order of the disk; none where only metadata is wanted.
        sectors: of the disk.
        files: all that are open, the image's own first.
        named: those of the extents, by name and access.
        stored: of each of these files (device, inode), whether it is a sparse one.
        changed: something was written since it was opened.
        goes_on: with writing, where grains are missing, and is told what is wrong: a server does.
        clusters: what moves the bytes of the disk, as the hooks of `tapcore.clusters` want it.
    """

    parts: list[Part]

    def __init__(
        self,
        file: ImageFile,
        descriptor: Descriptor | None,
        place: DescriptorPlace | None,
        subformat: str,
        header: SparseHeader | None = None,
    ) -> None:
        super().__init__(file, descriptor, place, subformat, header)
        self.parts = []
        self.files = [file]
        self.named: dict[tuple[str, str], ImageFile] = {}
        self.stored: dict[tuple[int, int], bool] = {}
        self.changed = False
        self.goes_on: Callable[[str], None] | None = None
        self.clusters = PartedDisk([], [file], self.begin_writing)
        self._epoll: select.epoll | None = None
        self._by_fd: dict[int, ImageFile] = {}

    @classmethod
    def of(cls, facts: Facts) -> Image:
        """An image that was looked at."""
        return cls(facts.file, facts.descriptor, facts.place, facts.subformat, facts.header)

    def set_parts(self, parts: list[Part]) -> None:
        """Take the parts over, in the order of the disk."""
        self.parts = parts
        self.sectors = parts[-1].end
        for part in parts:
            if part.file is not None and part.file not in self.files:
                self.files.append(part.file)
        for file in self.files:
            file.keeps_overflow = True
        self.clusters = PartedDisk(parts, self.files, self.begin_writing)
        if self.changed:
            self.clusters.go_ahead()
        if self._epoll is not None:
            self._poll_files()

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

    # ---- the first change ------------------------------------------------------------------

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
            if isinstance(part.map, WritableGrainMap | StreamMap):
                self._keep_what_is_lost(part, part.map)
        if self.descriptor is not None and self.place is not None:
            if cid is None:
                self.descriptor.new_cid(self.place.cid_digits())
            else:
                self.descriptor.set("CID", f"{cid:08x}")
            changed_now(self.descriptor)
            self.place.write_ids(self.descriptor)
        self.clusters.go_ahead()
        self.changed = True

    def _keep_what_is_lost(self, part: Part, map: WritableGrainMap | StreamMap) -> None:
        """New grains must not lie where a table says that others are, past the end of the file.

        Raises:
            ImageFormatError: such grains are missing; not for a server, which goes on behind them.
        """
        lost = list(lost_grains(map))
        if not lost:
            return
        many = "1 grain that lies" if len(lost) == 1 else f"{len(lost)} grains that lie"
        text = (
            f"has {many} past the end of the file "
            f"(the first at {part.start + lost[0][0] << 9} of the disk, "
            f"sector {lost[0][1]} of the file)"
        )
        if self.goes_on is None:
            raise ImageFormatError(
                f"{text}: it is damaged, and not written; convert --salvage copies what is there, "
                "check --repair all makes the rest zeroes",
                errno=errno.EIO,
            )
        self.goes_on(text)
        map.keep_free(max(place for _, place in lost) + (part.cluster >> 9))

    # ---- its files --------------------------------------------------------------------------

    def reap(self) -> int:
        """As `td_do_callbacks`; what callbacks have queued is handed on too."""
        if self._epoll is None:
            finished = self.file.reap()
        else:
            finished = sum(self._by_fd[fd].reap() for fd, _ in self._epoll.poll(0))
        self.clusters.submit()
        return finished

    def close(self) -> None:
        """Finish, save and release everything.

        Raises:
            OSError, TapError: not everything could be saved; everything is released all the same.
        """
        with ExitStack() as stack:
            for file in self.files:
                stack.callback(file.close)
            if self._epoll is not None:
                stack.callback(self._epoll.close)
            self.clusters.drain()
            if self.changed:
                self.clusters.save()
                for part in self.parts:
                    if isinstance(part.map, WritableGrainMap | StreamMap):
                        part.map.finish()
