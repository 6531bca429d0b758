"""A disk as Python's binary file: the calls that have a position."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from operator import index
from typing import Any, BinaryIO, NoReturn

from tapcore.disk.window import Window
from tapcore.engine import MappedExtent
from tapcore.errors import NotSupportedError, OutOfRangeError, UsageError


class DiskFile(io.RawIOBase):
    """`io.RawIOBase` over the positioned calls of a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._position = 0
        self._window: Window | None = None
        self._reopen: Callable[[], object] | None = None

    # ---- what a disk gives ------------------------------------------------------------------

    @property
    @abstractmethod
    def name(self) -> str:
        """The image as it was named."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Virtual size in bytes."""

    @property
    @abstractmethod
    def read_only(self) -> bool:
        """Whether it was opened for reading only."""

    @abstractmethod
    def pread(self, offset: int, *, length: int) -> bytes:
        """Bytes at an offset; fewer at the end of the disk."""

    @abstractmethod
    def _new_window(self) -> Window:
        """For small reads one after the other."""

    @abstractmethod
    def pread_into(self, offset: int, buf: bytearray | memoryview) -> int:
        """Fill a buffer from an offset; returns the bytes read, fewer at the end of the disk."""

    @abstractmethod
    def extents(self, offset: int = 0, *, length: int | None = None) -> Iterator[MappedExtent]:
        """What lies where, in order and without gaps, over the whole chain."""

    @abstractmethod
    def pwrite(self, offset: int, data: bytes | memoryview) -> int:
        """Write bytes at an offset, all of them."""

    @abstractmethod
    def sync(self) -> None:
        """Return when everything written is on disk."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise where it cannot be used (any more)."""

    @abstractmethod
    def _check_writable(self) -> None:
        """Raise where it cannot be written."""

    @abstractmethod
    def _alone(self) -> Any:
        """A context in which no other thread is let in."""

    # ---- what a file has --------------------------------------------------------------------

    def readable(self) -> bool:
        """Always, until it is closed."""
        self._check_open()
        return True

    def writable(self) -> bool:
        """Unless it was opened read-only."""
        self._check_open()
        return not self.read_only

    def seekable(self) -> bool:
        """Always, until it is closed."""
        self._check_open()
        return True

    def tell(self) -> int:
        """Where the next `read` or `write` begins (bytes)."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; positions past the end are allowed, and read as the end of the file."""
        self._check_open()
        offset, whence = index(offset), index(whence)
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if base is None:
            raise UsageError(f"whence {whence} is not known", image=self.name)
        if base + offset < 0:
            raise UsageError("cannot seek before the start", image=self.name)
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from the current position; without a size, or a negative one, all that are left.

        Small reads one after the other cost no request each: they come out of a larger one.
        """
        if size is None or size < 0:
            return self.readall()
        self._check_open()
        with self._alone():
            window = self._window
            if window is None:
                window = self._window = self._new_window()
            content = window.read(self._position, size)
            self._position += len(content)
            return content

    def readall(self) -> bytes:
        """All bytes from the current position to the end; in memory at once."""
        self._check_open()
        with self._alone():
            content = self.pread(self._position, length=max(self.size - self._position, 0))
            self._position += len(content)
            return content

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position."""
        self._check_open()
        with self._alone():
            count = self.pread_into(self._position, buffer)
            self._position += count
            return count

    def write(self, data: Any) -> int:
        """Write at the current position; fewer bytes at the end of the disk, none past it.

        Raises:
            OutOfRangeError: the position is at or past the end.
        """
        self._check_open()
        self._check_writable()
        view = memoryview(data).cast("B")
        if not view:
            return 0
        with self._alone():
            room = self.size - self._position
            if room <= 0:
                raise OutOfRangeError("the end of the disk is reached", image=self.name)
            count = self.pwrite(self._position, view[:room])
            self._position += count
            return count

    def truncate(self, size: int | None = None) -> NoReturn:
        """Not by this way: a virtual disk is resized on purpose, with `resize`."""
        self._check_open()
        raise NotSupportedError("use resize() to change a disk's size", image=self.name)

    def flush(self) -> None:
        """As `sync`; nothing on a closed disk."""
        if not self.closed:
            self.sync()

    def opened_again_by(self, reopen: Callable[[], object]) -> None:
        """Let a copy of a disk that is only read be another one, which that opens."""
        self._reopen = reopen

    def copy_to(self, target: BinaryIO) -> int:
        """Write the whole content into a file; what is known to be zero is left out where that can
        seek.

        Args:
            target: open for writing; a file that can seek is written from its current position on,
                and is to hold zeroes, or nothing, from there.

        Returns:
            The bytes of data written.
        """
        from tapcore.disk.copying import copy_to

        return copy_to(self, target)

    @property
    def mode(self) -> str:
        """As of a file: `rb`, or `rb+` where it can be written."""
        return "rb" if self.read_only else "rb+"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A disk that is only read is opened again, by the same name and options.

        Raises:
            TypeError: it can be written, or was not opened by `tapcore.open`: a copy would be
                closed together with the original, or work against it.
        """
        if self._reopen is None or not self.read_only:
            raise TypeError(
                "an open disk cannot be copied or pickled, unless tapcore.open has opened it for "
                "reading: pass its name, and open it again"
            )
        return self._reopen, ()
