"""Memory that is a file as well: what was received into it goes to its places by one call.

The kernel copies from a file to memory that this process must not touch (`preadv`), but not from
memory to memory.
"""

from __future__ import annotations

import mmap
import os
from threading import Lock
from typing import Final

import attrs

from tapcore.files.hostfile import punch_hole

SIZE: Final = 256 << 10
"""Bytes of a piece."""

_SLAB: Final = 16
"""Pieces that are made at a time: each time costs a descriptor."""

_MOST_KEPT: Final = 64
"""Pieces that keep their memory while nobody has them: 16 MiB."""


@attrs.frozen(eq=False)
class Carried:
    """A piece of it.

    Attributes:
        view: the memory.
        fd: the file.
        origin: where in it the memory begins, bytes.
    """

    view: memoryview
    fd: int
    origin: int


class CarriedMemory:
    """All pieces of the process; threads may share it. A forked child begins with none."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[Carried] = []
        self._fd = -1
        self._size = 0
        os.register_at_fork(after_in_child=self._forget)

    def take(self) -> Carried:
        """A piece, content undefined.

        Raises:
            OSError: there is no memory, or no descriptor, for it.
        """
        with self._lock:
            if not self._free:
                self._grow()
            return self._free.pop()

    def give(self, piece: Carried) -> None:
        """Return what `take` gave."""
        with self._lock:
            if piece.fd != self._fd:  # of before a fork
                return
            if len(self._free) >= _MOST_KEPT:
                punch_hole(piece.fd, piece.origin, SIZE)
            self._free.append(piece)

    def _grow(self) -> None:
        if self._fd < 0:
            self._fd = os.memfd_create("tapcore", os.MFD_CLOEXEC)
        start, length = self._size, _SLAB * SIZE
        os.ftruncate(self._fd, start + length)
        slab = memoryview(mmap.mmap(self._fd, length, offset=start))
        self._size += length
        self._free += [
            Carried(slab[at : at + SIZE], self._fd, start + at) for at in range(0, length, SIZE)
        ]

    def _forget(self) -> None:
        self._lock = Lock()
        self._free = []
        fd, self._fd, self._size = self._fd, -1, 0
        if fd >= 0:
            os.close(fd)


CARRIED: Final = CarriedMemory()
