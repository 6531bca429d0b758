"""Memory that a socket is read into: requests are parsed, and small writes are done, in place."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from tapcore.buffers import POOL
from tapcore.files.carried import CARRIED, SIZE, Carried

CAPACITY: Final = SIZE
_LOW_SPACE: Final = 64 << 10


class Chunk:
    """One buffer.

    Args:
        carried: its memory; None: it is the pool's.
        size: bytes, where it is the pool's.

    Attributes:
        carried: as given.
        view: the memory.
        holds: writes that still use a part of it.
    """

    __slots__ = ("carried", "current", "holds", "view")

    def __init__(self, carried: Carried | None = None, size: int = CAPACITY) -> None:
        self.carried = carried
        self.view = POOL.take(size) if carried is None else carried.view
        self.holds = 0
        self.current = True

    def free(self) -> None:
        """Give the memory back: nobody holds it, and no more is received into it."""
        if self.carried is None:
            POOL.give(self.view)
        else:
            CARRIED.give(self.carried)


class ReceiveBuffer:
    """Bytes received and not consumed yet: `view[start:end]`.

    Attributes:
        capacity: bytes of each buffer.
        carried: its memory, where that is a file as well.
        chunk: the buffer that is filled now.
        view: its memory.
        start: first byte that is not consumed.
        end: first byte that is free.
        wants_carried: somebody would use memory that is a file as well, as soon as it can be.
    """

    __slots__ = ("capacity", "carried", "chunk", "end", "start", "view", "wants_carried")

    def __init__(self, initial: bytes = b"") -> None:
        self.capacity = CAPACITY
        self.wants_carried = False
        self._begin(Chunk())
        self.start = 0
        self.end = len(initial)
        self.view[: self.end] = initial

    def _begin(self, chunk: Chunk) -> None:
        self.chunk, self.view, self.carried = chunk, chunk.view, chunk.carried

    def _carry(self) -> None:
        """The next buffer is such a one; it stays as it is where there is none."""
        self.wants_carried = False
        if self.capacity > CAPACITY:
            return  # it is worth more that several long writes fit into it
        with suppress(OSError):
            carried = CARRIED.take()
            self.chunk.free()
            self._begin(Chunk(carried))

    def space(self) -> memoryview:
        """Where the next bytes go; never empty."""
        start, end = self.start, self.end
        if start == end and not self.chunk.holds:
            if self.wants_carried:
                self._carry()
            self.start = self.end = 0
            return self.view
        if self.capacity - end < _LOW_SPACE and start:
            self._move()
        return self.view[self.end :]

    def _move(self) -> None:
        """Bring what is left to the front: of this buffer, or of a new one if writes use this."""
        rest = self.view[self.start : self.end]
        size = len(rest)
        if self.chunk.holds:
            old = self.chunk
            self._begin(Chunk(size=self.capacity))
            self.view[:size] = rest
            old.current = False
        else:
            # the parts may overlap; slice assignment between views of one object moves correctly
            self.view[:size] = rest
        self.start, self.end = 0, size

    def widen(self, capacity: int) -> None:
        """Have buffers of so many bytes from now on, more than before."""
        self.capacity = capacity
        rest, old = self.view[self.start : self.end], self.chunk
        self._begin(Chunk(size=capacity))
        self.start, self.end = 0, len(rest)
        self.view[: self.end] = rest
        old.current = False
        if not old.holds:
            old.free()

    def close(self) -> None:
        """Give the memory back, now or when the last write is done with it."""
        self.chunk.current = False
        if not self.chunk.holds:
            self.chunk.free()
