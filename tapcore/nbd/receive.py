"""Memory that a socket is read into: requests are parsed, and small writes are done, in place."""

from __future__ import annotations

from typing import Final

from tapcore.buffers import POOL

CAPACITY: Final = 256 << 10
_LOW_SPACE: Final = 64 << 10


class Chunk:
    """One buffer of the pool.

    Attributes:
        view: the memory.
        holds: writes that still use a part of it.
    """

    __slots__ = ("current", "holds", "view")

    def __init__(self) -> None:
        self.view = POOL.take(CAPACITY)
        self.holds = 0
        self.current = True


class ReceiveBuffer:
    """Bytes received and not consumed yet: `view[start:end]`.

    Attributes:
        chunk: the buffer that is filled now.
        view: its memory.
        start: first byte that is not consumed.
        end: first byte that is free.
    """

    __slots__ = ("chunk", "end", "start", "view")

    def __init__(self, initial: bytes = b"") -> None:
        self.chunk = Chunk()
        self.view = self.chunk.view
        self.start = 0
        self.end = len(initial)
        self.view[: self.end] = initial

    def space(self) -> memoryview:
        """Where the next bytes go; never empty."""
        start, end = self.start, self.end
        if start == end and not self.chunk.holds:
            self.start = self.end = 0
            return self.view
        if CAPACITY - end < _LOW_SPACE and start:
            self._move()
        return self.view[self.end :]

    def _move(self) -> None:
        """Bring what is left to the front: of this buffer, or of a new one if writes use this."""
        rest = self.view[self.start : self.end]
        size = len(rest)
        if self.chunk.holds:
            old = self.chunk
            self.chunk = Chunk()
            self.chunk.view[:size] = rest
            self.view = self.chunk.view
            old.current = False
        else:
            # the parts may overlap; slice assignment between views of one object moves correctly
            self.view[:size] = rest
        self.start, self.end = 0, size

    def close(self) -> None:
        """Give the memory back, now or when the last write is done with it."""
        self.chunk.current = False
        if not self.chunk.holds:
            POOL.give(self.view)
