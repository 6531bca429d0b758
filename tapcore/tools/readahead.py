"""Reading ranges of a disk in order, with the next ones already under way, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

from tapcore.buffers import long_bytearray
from tapcore.disk import Disk
from tapcore.engine import READ, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.errors import IOFailedError
from tapcore.interface.damage import known_failure

PIECE_BYTES: Final = 1 << 20
PIECES_AHEAD: Final = 4

Tag = TypeVar("Tag")


class Piece(Generic[Tag]):
    """A part of a range, read.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes, at most `PIECE_BYTES`.
        content: its first `length` bytes are what was read; valid until the next piece is taken.
        tag: the range's.
        since: how many losses the disk had before it was asked for.
    """

    __slots__ = ("content", "done", "length", "since", "start", "status", "tag")

    def __init__(self, start: int, length: int, content: bytearray, tag: Tag, since: int) -> None:
        self.start = start
        self.length = length
        self.content = content
        self.tag = tag
        self.since = since
        self.done = False
        self.status = 0

    def finished(self, request: Request) -> None:
        """The read's answer."""
        self.status = request.status
        self.done = True


def read_ahead(disk: Disk, ranges: Iterable[tuple[int, int, Tag]]) -> Iterator[Piece[Tag]]:
    """Read ranges, cut into pieces that end at multiples of `PIECE_BYTES`.

    Args:
        disk: open; only this may use it until the iteration has ended.
        ranges: (start, length, tag) in bytes; taken a little ahead of what is yielded.

    Raises:
        IOFailedError: a read failed; the text says where.
    """
    loop = EngineLoop(engine_of(disk.state))
    coming = _cut(ranges)
    waiting: deque[Piece[Tag]] = deque()
    free: list[bytearray] = []
    more = True
    while True:
        while more and len(waiting) < PIECES_AHEAD:
            part = next(coming, None)
            if part is None:
                more = False
                break
            buffer = free.pop() if free else long_bytearray(PIECE_BYTES)
            waiting.append(_start(disk, *part, buffer))
        if not waiting:
            return
        piece = waiting.popleft()
        loop.run_until(lambda piece=piece: piece.done)  # type: ignore[misc]
        if piece.status:
            raise _read_failed(disk, piece)
        yield piece
        free.append(piece.content)


def _cut(ranges: Iterable[tuple[int, int, Tag]]) -> Iterator[tuple[int, int, Tag]]:
    for start, length, tag in ranges:
        end = start + length
        while start < end:
            stop = min(end, (start // PIECE_BYTES + 1) * PIECE_BYTES)
            yield start, stop - start, tag
            start = stop


def _start(disk: Disk, start: int, length: int, tag: Tag, buffer: bytearray) -> Piece[Tag]:
    piece = Piece(start, length, buffer, tag, disk.state.losses.count)
    disk.submit(Request(READ, start, length, memoryview(buffer)[:length], piece.finished))
    return piece


def _read_failed(disk: Disk, piece: Piece[Any]) -> IOFailedError:
    end = piece.start + piece.length
    known = known_failure(disk.state, "read", piece.start, end, piece.status, since=piece.since)
    if known is not None:
        return known
    text = f"read failed between {piece.start} and {end}"
    return IOFailedError(
        f"{text}: {os.strerror(-piece.status)}", image=disk.state.image.name, errno=-piece.status
    )
