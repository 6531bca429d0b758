"""An open disk: positioned calls, and a seekable binary file over any image."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import index
from typing import TYPE_CHECKING, Any

from tapcore.disk.calls import failed
from tapcore.disk.opened import OpenDisk
from tapcore.disk.window import Window
from tapcore.engine import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    WRITE_COMPRESSED,
    ZERO,
    MappedExtent,
    Request,
)
from tapcore.engine.extents import chain_extents
from tapcore.errors import TapError, UsageError
from tapcore.interface.models import DiskDriver
from tapcore.sizes import checked_size

if TYPE_CHECKING:
    from tapcore.interface.results import Bitmap, Snapshot

_MAX_CALL = 8 << 20
"""Bytes that a single request from Python moves; larger calls are made of several."""

_MAX_ZERO = 1 << 30
"""The same for zeroing, which moves nothing where the driver knows how."""


class Disk(OpenDisk):
    """An open virtual disk: positioned calls, and a seekable file.

    Every call waits for its answer. One thread at a time is let in, so a disk may be shared by
    threads; not by processes: in a child that was forked every call raises ForkedError, and
    closing writes nothing.

    Args:
        state: an open chain with its engine; closed with the disk.
        salvage: reads do not fail, and what is lost is noted there.

    Attributes:
        salvage: as given; None for a disk whose reads fail where it is damaged.
    """

    def _new_window(self) -> Window:
        # without a lock somebody may write to it meanwhile, and tell nobody
        return Window(self.pread_into, self._calls if self._leaf.options.locking else None)

    # ---- positioned calls -------------------------------------------------------------------

    def pread(self, offset: int, *, length: int) -> bytes:
        """Bytes at an offset; fewer at the end of the disk.

        Here as in every call of a disk a length has to be named: `os.pread` has the two the other
        way round, and nobody would be told that they were swapped.

        Args:
            offset: bytes, not negative.
            length: bytes.
        """
        offset, length = self._clip(offset, length)
        buf = bytearray(length)
        self.pread_into(offset, buf)
        return bytes(buf)

    def pread_into(self, offset: int, buf: bytearray | memoryview) -> int:
        """Fill a buffer from an offset; returns the bytes read, fewer at the end of the disk."""
        view = memoryview(buf).cast("B")
        if view.readonly:
            raise TypeError("what is read goes into a buffer that can be written")
        offset, length = self._clip(offset, len(view))
        for start in range(0, length, _MAX_CALL):
            part = view[start : min(start + _MAX_CALL, length)]
            self._call(READ, offset + start, len(part), part)
        return length

    def pwrite(
        self, offset: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> int:
        """Write bytes at an offset.

        Args:
            offset: bytes.
            data: must end inside the disk: an image does not grow by writing.
            fua: return only when it is on disk.

        Returns:
            The bytes written: all.
        """
        view = memoryview(data).cast("B")
        offset, _ = self._check_range(offset, len(view))
        self._check_writable()
        for start in range(0, len(view), _MAX_CALL):
            part = view[start : start + _MAX_CALL]
            self._call(WRITE, offset + start, len(part), part, fua=fua)
        return len(view)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Store whole clusters compressed.

        Args:
            offset: bytes, a multiple of `cluster_size`.
            data: whole clusters; the disk's last one may be cut by its end.

        Returns:
            The bytes written: all.

        Raises:
            NotSupportedError: the format stores everything plain.
        """
        view = memoryview(data).cast("B")
        offset, _ = self._check_range(offset, len(view))
        self._check_writable()
        self._leaf.drv.require("td_queue_write_compressed", self.name)
        unit = self.cluster_size
        if offset % unit or (len(view) % unit and offset + len(view) != self.size):
            text = f"only whole clusters of {unit} bytes can be stored compressed"
            raise UsageError(text, image=self.name)
        step = max(_MAX_CALL // unit * unit, unit)
        for start in range(0, len(view), step):
            part = view[start : start + step]
            self._call(WRITE_COMPRESSED, offset + start, len(part), part)
        return len(view)

    def zero(self, offset: int, *, length: int, unmap: bool = True) -> None:
        """Make a range read as zeroes, giving space back where `unmap` allows it."""
        offset, length = self._check_range(offset, length)
        self._check_writable()
        # in pieces: a driver that cannot zero has the zeroes written, all of a call at once
        for start in range(0, length, _MAX_ZERO):
            count = min(_MAX_ZERO, length - start)
            self._call(ZERO, offset + start, count, None, may_unmap=unmap)

    def discard(self, offset: int, *, length: int) -> None:
        """Tell that the content of a range is no longer needed."""
        offset, length = self._check_range(offset, length)
        self._check_writable()
        self._call(DISCARD, offset, length, None)

    def sync(self) -> None:
        """Return when everything written is on disk."""
        self._check_open()
        if not self.read_only:
            self._call(FLUSH, 0, 0, None)

    def extents(self, offset: int = 0, *, length: int | None = None) -> Iterator[MappedExtent]:
        """What lies where, in order and without gaps, over the whole chain.

        Args:
            offset: bytes.
            length: bytes; None for all up to the end.

        Raises:
            TapError: it cannot be told; with the image's name.
        """
        if length is None:
            length = self.size - min(index(offset), self.size)
        return self._extents(*self._check_range(offset, length))

    def _extents(self, offset: int, length: int) -> Iterator[MappedExtent]:
        if not length:
            return
        self._check_open()
        extents = chain_extents
        if self.salvage is not None:
            from tapcore.engine.salvage import salvaged_extents as extents
        with self._calls.driver(self._state.image.name) as dd:
            yield from extents(dd, offset, length)

    def info(self) -> dict[str, Any]:
        """What the format says of itself (the `format` object of `tapdisk info --json`)."""
        with self._asking(self.name) as dd:
            return dict(dd.drv.td_info(dd))

    def snapshots(self) -> list[Snapshot]:
        """The internal snapshots of the image; none where the format has none."""
        with self._asking(self.name) as dd:
            return list(dd.drv.td_snapshots(dd))

    def bitmaps(self) -> list[Bitmap]:
        """The persistent bitmaps of the image; none where the format has none."""
        with self._asking(self.name) as dd:
            return list(dd.drv.td_bitmaps(dd))

    def bitmap_ranges(self, name: str) -> list[tuple[int, int]]:
        """What a bitmap calls changed: (start, length) in bytes, in order.

        Raises:
            UsageError: the image has no such bitmap, or it is inconsistent.
        """
        found = [bitmap for bitmap in self.bitmaps() if bitmap.name == name]
        if not found:
            raise UsageError(f"has no bitmap '{name}'", image=self.name)
        if found[0].inconsistent:
            text = f"the bitmap '{name}' was not saved properly, and says nothing"
            raise UsageError(text, image=self.name)
        with self._asking(self.name) as dd:
            return list(dd.drv.td_bitmap_ranges(dd, name))

    def driver(self) -> AbstractContextManager[DiskDriver]:
        """For tools: the image, to ask its driver for what is no request; nobody else is let in.

        Raises:
            TapError: of whatever the driver raises; with the image's name.
        """
        return self._asking(self._state.image.name)

    @contextmanager
    def _asking(self, image: str) -> Iterator[DiskDriver]:
        self._check_open()
        with self._calls.lock, self._calls.driver(image) as dd:
            self._check_open()
            yield dd

    def resize(self, size: int | str) -> None:
        """Change the virtual size (bytes, a multiple of 512, or `10G`); what is new is zero."""
        self._check_open()
        size = checked_size(size, self.name)
        self._check_writable()
        with self._calls.lock:
            self._check_open()
            self._check_new_end(size)
            self._engine.before_giving_up()
            with self._asking(self.name) as dd:
                try:
                    dd.drv.td_resize(dd, size)
                except OSError as exc:
                    if isinstance(exc, TapError):
                        raise
                    raise failed(self.name, "resize", -(exc.errno or errno.EIO)) from None
            self._engine.refresh()

    def _check_new_end(self, size: int) -> None:
        """What is at the end tells what a disk is: cutting it off must not turn it into another."""
        guard = self._engine.guard
        if guard is None or size >= self.size:
            return
        tail = min(guard.tail, size)
        ends = self.pread(0, length=min(guard.head, size)), self.pread(size - tail, length=tail)
        if reason := guard.reason(*ends, size):
            raise UsageError(reason, image=self.name)

    # ---- one request at a time --------------------------------------------------------------

    def _call(self, op: int, offset: int, length: int, buf: memoryview | None, **how: bool) -> None:
        self._check_open()
        with self._calls.lock:
            self._check_range(offset, length)  # once more: another thread may have changed the size
            self._calls.ask(op, offset, length, buf, **how)

    def submit(self, request: Request) -> None:
        """For tools that drive the engine: hand a request to it; a salvaged read does not fail."""
        self._calls.submit(request)
