"""Writing zstd's seekable format: from front to back, compressed by several threads.

Each frame holds as much of the disk, says so, and ends with a checksum, so that `zstd -d` reads it
too. A frame of zeroes is compressed once.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import attrs

from tap_zraw.archives import OTHER_SUFFIXES
from tap_zraw.pieces import MOST_PIECES
from tap_zraw.zstd.library import library
from tap_zraw.zstd.seektable import seek_table
from tapcore import (
    DiskId,
    Measurement,
    UsageError,
    create_host_file,
    open_host_file,
    parse_size,
    remove_host_file,
)

SMALLEST_FRAME: Final = 4 << 10
LARGEST_FRAME: Final = 32 << 20
_USUAL_FRAME: Final = 128 << 10
_MOST_USUAL_FRAME: Final = 4 << 20
_MANY_FRAMES: Final = 1 << 18
_LEVELS: Final = range(1, 20)
_FRAMES_AT_ONCE: Final = 4 << 20
"""Bytes of content in one task, or one frame: the threads need not talk for every small one."""

Out: TypeAlias = Callable[[Any], object]
Frames: TypeAlias = list[bytes]


@attrs.frozen
class Wish:
    """How a disk is to be compressed.

    Attributes:
        frame: bytes of the disk in a frame.
        level: of zstd.
    """

    frame: int
    level: int

    def compress(self, content: Any) -> bytes:
        """One frame."""
        zstd = library()
        parameter = zstd.CompressionParameter
        options = {parameter.compression_level: self.level, parameter.checksum_flag: 1}
        packed: bytes = zstd.compress(content, options=options)
        return packed


def wish_of(options: Mapping[str, str], size: int) -> Wish:
    """What `-o` says.

    Args:
        options: of the new image.
        size: of its disk, bytes.

    Raises:
        UsageError, NotSupportedError: that cannot be.
    """
    library()
    try:
        level = int(options.get("level") or 3)
    except ValueError:
        level = 0
    if level not in _LEVELS:
        raise UsageError(f"level is a number from {_LEVELS[0]} to {_LEVELS[-1]}")
    given = options.get("frame", "")
    frame = parse_size(given) if given else _usual_frame(size)
    if frame & (frame - 1) or not SMALLEST_FRAME <= frame <= LARGEST_FRAME:
        raise UsageError("frame is a power of two from 4K to 32M")
    if -(-size // frame) > MOST_PIECES:
        raise UsageError(f"a disk of {size} bytes needs larger frames, or has no room in zraw")
    return Wish(frame, level)


def _usual_frame(size: int) -> int:
    """Small ones are quick to read, and many make a large table."""
    frame = _USUAL_FRAME
    while frame < _MOST_USUAL_FRAME and size > frame * _MANY_FRAMES:
        frame *= 2
    while frame < LARGEST_FRAME and size > frame * MOST_PIECES:
        frame *= 2
    return frame


class _Writer:
    """The frames of one disk, in order.

    Args:
        out: takes the file's bytes.
        size: of the disk, bytes.
        wish: how it is compressed.
        threads: that compress.
    """

    def __init__(self, out: Out, size: int, wish: Wish, threads: ThreadPoolExecutor) -> None:
        self._out = out
        self._size = size
        self._wish = wish
        self._threads = threads
        self._batch = max(_FRAMES_AT_ONCE // wish.frame, 1)
        self._most = 2 * _processors()
        self._zero = wish.compress(bytes(wish.frame))
        self._table = array("Q")  # length of each frame << 32 | its content
        self._content = bytearray()  # of frames that are not under way yet
        self._under_way: deque[Future[Frames] | int] = deque()  # frames, or how many of zeroes
        self._given = 0  # bytes of the disk that are in `_content`, or further

    def add(self, offset: int, content: memoryview) -> None:
        """The next piece of the disk; what lies before it is zeroes."""
        self._zeroes(offset - self._given)
        batch = self._batch * self._wish.frame
        while content:
            room = batch - len(self._content)
            self._content += content[:room]
            self._given += min(room, len(content))
            content = content[room:]
            if len(self._content) == batch:
                self._compress()

    def _zeroes(self, length: int) -> None:
        frame = self._wish.frame
        lead = min(-len(self._content) % frame, length)
        self._content += bytes(lead)
        self._given += lead
        length -= lead
        whole = length // frame
        if whole:
            self._compress()
            self._push(whole)
            self._given += whole * frame
        rest = length - whole * frame
        self._content += bytes(rest)
        self._given += rest

    def _compress(self) -> None:
        if not self._content:
            return
        content, self._content = self._content, bytearray()
        frame, compress = self._wish.frame, self._wish.compress

        def work() -> Frames:
            view = memoryview(content)
            return [compress(view[at : at + frame]) for at in range(0, len(view), frame)]

        self._push(self._threads.submit(work))

    def _push(self, frames: Future[Frames] | int) -> None:
        self._under_way.append(frames)
        while len(self._under_way) > self._most:
            self._write_next()

    def _write_next(self) -> None:
        frames = self._under_way.popleft()
        if isinstance(frames, int):
            self._write_zeroes(frames)
            return
        for packed in frames.result():
            self._note(len(packed), 1)
        self._out(b"".join(frames.result()))

    def _write_zeroes(self, count: int) -> None:
        self._note(len(self._zero), count)
        many = self._zero * min(count, 1 << 14)
        while count:
            part = min(count, 1 << 14)
            self._out(many[: part * len(self._zero)])
            count -= part

    def _note(self, length: int, count: int) -> None:
        self._table.extend(array("Q", [length << 32 | self._wish.frame]) * count)

    def finish(self) -> None:
        """The rest of the disk, and the table."""
        self._zeroes(self._size - self._given)
        self._compress()
        while self._under_way:
            self._write_next()
        frames = [(entry >> 32, entry & 0xFFFFFFFF) for entry in self._table]
        if last := self._size % self._wish.frame:
            frames[-1] = (frames[-1][0], last)
        self._out(seek_table(frames))


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def stream(
    out: Out, size: int, options: Mapping[str, str], pieces: Iterable[tuple[int, memoryview]]
) -> None:
    """As `td_stream`."""
    wish = wish_of(options, size)
    with ThreadPoolExecutor(_processors(), "tapcore-zraw") as threads:
        writer = _Writer(out, size, wish, threads)
        for offset, content in pieces:
            writer.add(offset, content)
        writer.finish()


def create(name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]) -> None:
    """As `td_create`.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    if parent is not None or size is None:
        raise UsageError("a compressed raw disk stands alone and needs a size")
    if os.path.splitext(name)[1].lower() in OTHER_SUFFIXES:
        raise UsageError("what is made is compressed with zstd: call it NAME.raw.zst")
    wish_of(options, size)
    create_host_file(name, 0)
    try:
        with os.fdopen(open_host_file(name, writing=True), "r+b") as file:
            stream(file.write, size, options, ())
    except BaseException:
        remove_host_file(name)
        raise


def measure(size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]) -> Measurement:
    """As `td_measure`: the most that it can be."""
    wish = wish_of(options, size)
    frame = wish.frame
    frames = -(-size // frame)
    held = following = 0
    for start, length in data:
        if length:
            first, last = start // frame, (start + length - 1) // frame
            held += last + 1 - max(first, following)
            following = last + 1
    zero = len(wish.compress(bytes(frame)))
    most = frame + 18 + 4 + 3 * -(-frame // (128 << 10))  # stored, and all headers
    table = 8 + 8 * frames + 9
    return Measurement(held * most + (frames - held) * zero + table, frames * most + table)
