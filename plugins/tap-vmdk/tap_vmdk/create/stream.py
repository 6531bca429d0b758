"""Writing a stream (streamOptimized) strictly from front to back, for instance into a pipe.

Grains in ascending order, each grain table behind its last grain, the directory, and a footer: the
layout that VMware's own tools write and ESXi reads as it comes.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from tap_vmdk.create.content import STREAM_NAME, new_descriptor, stream_head, stream_header
from tap_vmdk.create.newdisk import NewDisk, new_disk
from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.options import STREAM
from tap_vmdk.sparse.entries import CODING, LAST_SECTOR
from tap_vmdk.sparse.header import DEFAULT_GRAIN
from tap_vmdk.sparse.markers import (
    MARKER_DIRECTORY,
    MARKER_TABLE,
    grain_with_marker,
    marked,
    stream_end,
)
from tapcore import NotSupportedError
from tapcore.deflate import deflate

_GRAIN_BYTES: Final = DEFAULT_GRAIN * 512
_ZEROES: Final = bytes(_GRAIN_BYTES)
_TASK_GRAINS: Final = 8
"""Compressed by one task of a thread."""

_Grains = list[tuple[int, bytes]]
"""(number, content, or what is stored of it)"""


def write_stream(
    out: Callable[[Any], object],
    size: int,
    options: Mapping[str, str],
    pieces: Iterable[tuple[int, memoryview]],
) -> None:
    """As `td_stream`."""
    if options.get("subformat", STREAM) != STREAM:
        raise NotSupportedError(f"only a {STREAM} disk can be written front to back")
    writer = StreamWriter(out, new_disk(size, {**options, "subformat": STREAM}))
    workers = os.cpu_count() or 1
    waiting: deque[Future[_Grains]] = deque()
    with ThreadPoolExecutor(workers, "vmdk-deflate") as pool:
        try:
            for grains in _tasks(pieces):
                waiting.append(pool.submit(_compress, grains))
                if len(waiting) > 2 * workers:
                    writer.add(waiting.popleft().result())
            while waiting:
                writer.add(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
    writer.finish()


def _tasks(pieces: Iterable[tuple[int, memoryview]]) -> Iterator[_Grains]:
    """The grains of all pieces that are not zeroes, copied, several at a time."""
    grains: _Grains = []
    for offset, content in pieces:
        for at in range(0, len(content), _GRAIN_BYTES):
            grain = bytes(content[at : at + _GRAIN_BYTES])
            if len(grain) < _GRAIN_BYTES:
                grain = grain.ljust(_GRAIN_BYTES, b"\0")
            if grain == _ZEROES:
                continue
            grains.append(((offset + at) // _GRAIN_BYTES, grain))
            if len(grains) == _TASK_GRAINS:
                yield grains
                grains = []
    if grains:
        yield grains


def _compress(grains: _Grains) -> _Grains:
    return [
        (
            number,
            grain_with_marker(number * DEFAULT_GRAIN, deflate(content, wbits=15)),
        )
        for number, content in grains
    ]


class StreamWriter:
    """Puts a stream together.

    Args:
        out: takes the next bytes.
        disk: what the disk is.
    """

    def __init__(self, out: Callable[[Any], object], disk: NewDisk) -> None:
        self._out = out
        self._header = stream_header(disk)
        self._directory = CODING.decode(bytes(4 * self._header.tables))
        self._table: array[int] = CODING.decode(b"")
        self._index = 0
        self._sector = 0
        line = ExtentLine("RDONLY", disk.sectors, "SPARSE", STREAM_NAME)
        self._write(stream_head(disk, new_descriptor(disk, [line]).serialise()))

    def _write(self, content: bytes | bytearray) -> None:
        self._out(content)
        self._sector += len(content) >> 9

    def add(self, grains: _Grains) -> None:
        """The next compressed grains, in ascending order.

        Raises:
            NotSupportedError: the stream becomes longer than its tables can tell.
        """
        block = bytearray()
        for number, stored in grains:
            index, entry = divmod(number, self._header.entries)
            if index != self._index:
                self._write(block)
                block = bytearray()
                self._end_table()
                self._index = index
            if not self._table:
                self._table = CODING.decode(bytes(4 * self._header.entries))
            place = self._sector + (len(block) >> 9)
            if place >= LAST_SECTOR - (1 << 20):
                raise NotSupportedError("the stream would be longer than 2 TiB")
            self._table[entry] = place
            block += stored
        self._write(block)

    def _end_table(self) -> None:
        if not self._table:
            return
        sectors = self._header.table_sectors
        self._directory[self._index] = self._sector + 1
        self._write(marked(MARKER_TABLE, sectors, self._table))
        self._table = CODING.decode(b"")

    def finish(self) -> None:
        """Write what follows the grains."""
        self._end_table()
        size = self._header.directory_sectors
        place = self._sector + 1
        self._write(marked(MARKER_DIRECTORY, size, self._directory))
        self._write(stream_end(self._header, place))
