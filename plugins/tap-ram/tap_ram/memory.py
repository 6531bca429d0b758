"""The memory of a RAM disk: one mapping of a memfd, sparse until it is written."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

from tapcore import (
    TD_RDONLY,
    ImageFile,
    NotSupportedError,
    OpenOptions,
    UsageError,
    fallocate_punch_hole,
    open_image_file,
    parse_size,
)

CHUNK_SHIFT = 16
"""Reading a page of a memfd that was never written makes the kernel allocate it, so a set of the
64 KiB chunks that were written is kept, and no other chunk is ever touched by a read."""

_CHUNK = 1 << CHUNK_SHIFT
_COPY = 1 << 20


class Memory:
    """Bytes of a RAM disk.

    Args:
        size: bytes, a multiple of 512.
        source: the file that it was loaded from, or "".

    Attributes:
        fd: the memfd.
        view: the mapping.
        chunks: numbers of the chunks that may hold something.
        size: bytes.
        source: as given.
    """

    __slots__ = ("_data", "_map", "chunks", "fd", "size", "source", "view")

    def __init__(self, size: int, source: str = "") -> None:
        self.source = source
        self.size = size
        self.chunks: set[int] = set()
        self._data = (0, 0)
        self.fd = os.memfd_create("tapcore-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except (OSError, OverflowError, ValueError):
            os.close(self.fd)
            raise UsageError("is more than this machine can address") from None
        self.view = memoryview(self._map)

    @classmethod
    def named(cls, name: str, *, locking: bool = True) -> Memory:
        """From what stands behind `ram:`: an existing file, or a size."""
        if os.path.lexists(name):
            file = open_image_file(name, TD_RDONLY, OpenOptions(locking=locking))
            try:
                return cls._loaded(file)
            finally:
                file.close()
        try:
            size = parse_size(name)
        except UsageError:
            raise UsageError("is neither an existing file nor a size like 64M") from None
        if not size:
            raise UsageError("a RAM disk must not be empty")
        return cls(-(-size // 512) * 512)

    @classmethod
    def _loaded(cls, file: ImageFile) -> Memory:
        size = file.sectors << 9
        if not size:
            raise UsageError("is empty: there is nothing to load")
        memory = cls(size, file.path)
        try:
            for start, end, data in file.runs(0, file.size):
                if data:
                    memory._load(file, start, end)
        except BaseException:
            memory.close()
            raise
        return memory

    def _load(self, file: ImageFile, start: int, end: int) -> None:
        self.chunks.update(range(start >> CHUNK_SHIFT, (end - 1 >> CHUNK_SHIFT) + 1))
        for at in range(start, end, _COPY):
            with self.view[at : min(at + _COPY, end)] as part:
                res = file.read_blocking(at, part)
            if res:
                raise OSError(-res, os.strerror(-res))

    def read(self, offset: int, buf: memoryview) -> None:
        """Fill `buf`; never touches memory that was not written."""
        done, length = 0, len(buf)
        while done < length:
            at = offset + done
            count = min(_CHUNK - (at & (_CHUNK - 1)), length - done)
            if at >> CHUNK_SHIFT in self.chunks:
                while (at + count) >> CHUNK_SHIFT in self.chunks and done + count < length:
                    count = min(count + _CHUNK, length - done)
                buf[done : done + count] = self.view[at : at + count]
            else:
                buf[done : done + count] = bytes(count)
            done += count

    def write(self, offset: int, buf: memoryview) -> None:
        """Store `buf`."""
        end = offset + len(buf)
        first, last = offset >> CHUNK_SHIFT, (end - 1) >> CHUNK_SHIFT
        if first == last:
            self.chunks.add(first)
        else:
            self.chunks.update(range(first, last + 1))
        self.view[offset:end] = buf

    def punch(self, offset: int, length: int) -> None:
        """Make a range zeroes and give its whole pages back."""
        fallocate_punch_hole(self.fd, offset, length)
        self._data = (0, 0)
        whole = range(-(-offset // _CHUNK), (offset + length) >> CHUNK_SHIFT)
        if len(whole) > len(self.chunks):
            self.chunks = {chunk for chunk in self.chunks if chunk not in whole}
        else:
            self.chunks.difference_update(whole)
        for edge in {offset >> CHUNK_SHIFT, (offset + length - 1) >> CHUNK_SHIFT}:
            if edge in self.chunks and self._is_hole(edge):
                self.chunks.remove(edge)

    def _is_hole(self, chunk: int) -> bool:
        """Whether the kernel keeps no page of a chunk (it was punched piece by piece)."""
        start = chunk << CHUNK_SHIFT
        try:
            return os.lseek(self.fd, start, os.SEEK_DATA) >= start + _CHUNK
        except OSError:  # no data from here on
            return True

    def runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Data and holes, as (start, end, is data), ends rounded to the kernel's pages.

        The kernel walks a run of data page by page to find its end, so one run is remembered.
        """
        while offset < end:
            if not self._data[0] <= offset < self._data[1]:
                try:
                    data = os.lseek(self.fd, offset, os.SEEK_DATA)
                except OSError:  # no data from here on
                    data = end
                if data > offset:
                    yield offset, min(data, end), False
                if data >= end:
                    return
                self._data = data, os.lseek(self.fd, data, os.SEEK_HOLE)
                offset = data
            stop = min(self._data[1], end)
            yield offset, stop, True
            offset = stop

    def used(self) -> int:
        """Bytes of memory really taken."""
        return os.fstat(self.fd).st_blocks * 512

    def resize(self, size: int) -> None:
        """Change the size (bytes)."""
        if not size:
            raise NotSupportedError("a RAM disk must not be empty")
        os.ftruncate(self.fd, max(size, self.size))
        try:
            grown = mmap.mmap(self.fd, size)
        except (OSError, OverflowError, ValueError):
            os.ftruncate(self.fd, self.size)
            raise UsageError("is more than this machine can address") from None
        self.view.release()
        self._map.close()
        self._map, self.view, self.size = grown, memoryview(grown), size
        self._data = (0, 0)
        os.ftruncate(self.fd, size)
        last = (size - 1) >> CHUNK_SHIFT
        self.chunks = {chunk for chunk in self.chunks if chunk <= last}

    def close(self) -> None:
        """Free everything."""
        self.view.release()
        self._map.close()
        os.close(self.fd)
