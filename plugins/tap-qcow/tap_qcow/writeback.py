"""Writing tables back, in an order in which a crash at any moment leaves at worst unused space.

All changes of tables are made in memory, each when what it points to has been written. A write-back
takes a picture of them and brings it to the disk in two steps, each safe (fdatasync) before the
next thing happens:

1. new L2 tables, which nothing points to yet; with them becomes safe what clients have written;
2. changed entries of L2 tables and of the L1 table.

What changes while a write-back runs is not in its picture, so nothing is published before its data
is safe. It runs in a thread, one at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from tap_qcow import words
from tap_qcow.header import HEADER, XenExtension
from tap_qcow.tables import BLOCK_SHIFT, Table
from tapcore import ImageFile

if TYPE_CHECKING:
    from tap_qcow.image import Image

Write = tuple[int, bytes]
"""Offset in the file (bytes), and content."""


@attrs.define
class Picture:
    """What one write-back brings to the disk, and what it was taken from.

    Attributes:
        first: the writes of step 1.
        last: the writes of step 2.
        tables: L2 tables, each with its dirty blocks, and whether it was fresh.
        l1: dirty blocks of the L1 table.
        extension: what blktap's extension becomes, before anything else; None: what it is.
        lost: -errno with which an fdatasync failed.
        reached: the last step that has begun, from 1: something of it may be on disk.
    """

    first: list[Write] = attrs.field(factory=list)
    last: list[Write] = attrs.field(factory=list)
    tables: list[tuple[Table, set[int], bool]] = attrs.field(factory=list)
    l1: set[int] = attrs.field(factory=set)
    extension: XenExtension | None = None
    lost: int = 0
    reached: int = 1


class Writeback:
    """The write-backs of one image.

    Args:
        image: whose tables are written.

    Attributes:
        running: one is under way.
        error: -errno of the last one that failed, if none has succeeded since.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._waiting: list[Callable[[int], int]] = []
        self._untold = 0
        self.running = False
        self.error = 0

    def flush(self, then: Callable[[int], int]) -> int:
        """Make all that clients have been answered safe, and then call `then(0 or -errno)`.

        What the kernel could not write it has forgotten, and says so once: the flush that hears of
        it fails. Tables are written again from memory by the next one.
        """
        self._waiting.append(then)
        if not self.running:
            self._begin()
        return 0

    def when_needed(self) -> None:
        """Begin one if so many tables have changed that memory would not stay bounded."""
        if not self.running and self._image.tables.overfull:
            self._begin()

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        picture = self._take_picture()
        self.running = True

        def finished(dd: object, res: int, *_: Any) -> int:
            self.running = False
            self._conclude(picture, res)
            if waiting:
                untold = self.failure_to_tell()
                res = res or untold
            else:
                self._untold = picture.lost or self._untold
            done = sum(then(res) for then in waiting)
            if self._waiting and not self.running:
                self._begin()
            return done

        answer = (finished, None, 0, 0, 0, None)
        self._image.file.queue_work(self._perform, (picture,), answer)  # type: ignore[arg-type]

    def failure_to_tell(self) -> int:
        """-errno of an fdatasync that failed when nobody waited for it, once; 0: there is none."""
        untold, self._untold = self._untold, 0
        return untold

    def all_now(self) -> None:
        """Bring everything to the disk and wait for it; nothing may be under way.

        Raises:
            OSError: as the system says.
        """
        assert not self.running
        picture = self._take_picture()
        try:
            res = self._perform(picture)
        except OSError as exc:
            res = -(exc.errno or errno.EIO)
        self._conclude(picture, res)
        if res:
            raise OSError(-res, os.strerror(-res))

    # ---- the picture ------------------------------------------------------------------------

    def _take_picture(self) -> Picture:
        image, tables, picture = self._image, self._image.tables, Picture()
        picture.extension = image.plain_extension() if tables.dirty else None
        if picture.extension is not None:
            picture.first.append((HEADER.size, picture.extension.pack()))
        for table in tables.dirty:
            if table.fresh:
                picture.first.append((table.offset, words.to_bytes(table.entries)))
            else:
                picture.last += _blocks(table.entries, table.dirty, table.offset)
            picture.tables.append((table, table.dirty, table.fresh))
            table.dirty, table.fresh = set(), False
            table.pins += 1
        tables.dirty.clear()
        picture.last += _blocks(
            tables.l1, tables.l1_dirty, image.header.l1_offset, little=image.little
        )
        picture.l1, tables.l1_dirty = tables.l1_dirty, set()
        return picture

    def _perform(self, picture: Picture) -> int:
        """In a thread. Returns 0 or -errno, or raises OSError."""
        file = self._image.file
        _write(file, picture.first)
        picture.lost = file.flush_blocking()
        if picture.last and not picture.lost:
            picture.reached = 2
            _write(file, picture.last)
            picture.lost = file.flush_blocking()
        return picture.lost

    def _conclude(self, picture: Picture, res: int) -> None:
        self.error = res
        tables = self._image.tables
        for table, dirty, fresh in picture.tables:
            table.pins -= 1
            if res:
                table.dirty |= dirty
                table.fresh = fresh and picture.reached < 2  # else something may point to it
                tables.dirty.add(table)
        if res:
            tables.l1_dirty |= picture.l1
        elif picture.extension is not None:
            self._image.header.xen = picture.extension


def _blocks(
    entries: words.Words, dirty: set[int], offset: int, *, little: bool = False
) -> list[Write]:
    """The dirty blocks of a table that lies at an offset (bytes); neighbours in one write."""
    writes: list[Write] = []
    size = 1 << BLOCK_SHIFT
    numbers = sorted(dirty)
    while numbers:
        first = numbers[0]
        count = 1
        while count < len(numbers) and numbers[count] == first + count:
            count += 1
        part = entries[first * size : (first + count) * size]
        writes.append((offset + first * size * 8, words.to_bytes(part, little=little)))
        del numbers[:count]
    return writes


def _write(file: ImageFile, writes: list[Write]) -> None:
    for offset, content in writes:
        file.write_metadata(offset, content)
