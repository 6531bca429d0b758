"""A disk's content into any file of Python's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, Final, Protocol

from tapcore.buffers import ZEROES, long_bytearray
from tapcore.engine import MappedExtent

_PIECE: Final = 1 << 20


class Readable(Protocol):
    """What is copied: a disk."""

    @property
    def size(self) -> int: ...

    def extents(self) -> Iterator[MappedExtent]: ...

    def pread_into(self, offset: int, buf: memoryview) -> int: ...


def copy_to(disk: Readable, target: BinaryIO) -> int:
    """See `DiskFile.copy_to`."""
    seekable = target.seekable()
    begin = target.tell() if seekable else 0
    buffer = long_bytearray(_PIECE)
    written = 0
    for run in disk.extents():
        if run.kind == "zero" and seekable:
            continue
        if run.kind == "zero":
            _write_zeroes(target, run.length)
            continue
        if seekable:
            target.seek(begin + run.start)
        for at in range(run.start, run.end, _PIECE):
            view = memoryview(buffer)[: min(_PIECE, run.end - at)]
            disk.pread_into(at, view)
            _write(target, view)
            written += len(view)
    if seekable:
        _end_at(target, begin + disk.size)
    return written


def _write(target: BinaryIO, view: memoryview) -> None:
    """All of it: a raw file may take less in one call."""
    while view:
        view = view[target.write(view) :]


def _write_zeroes(target: BinaryIO, length: int) -> None:
    while length:
        count = min(length, len(ZEROES))
        _write(target, memoryview(ZEROES)[:count])
        length -= count


def _end_at(target: BinaryIO, end: int) -> None:
    """A file that ends with zeroes has its size from that alone."""
    if target.seek(0, os.SEEK_END) < end:
        target.truncate(end)
    target.seek(end)
