"""Operations of a front end between buffers of the pool and a file that is open with O_DIRECT."""

from __future__ import annotations

import threading
from typing import Any, Final, Protocol, TypeAlias

PooledOp: TypeAlias = tuple[int, int, int, tuple[Any, ...]]
"""An operation past the driver: its place in the file (bytes), where its buffer lies in memory, its
length (bytes), and a token. That keeps the buffer, and begins with its `Group`. A plain tuple: each
has one."""

Moved: TypeAlias = tuple[int, tuple[Any, ...]]
"""What became of it: so many bytes were moved, or -errno; its token."""


class Group(Protocol):
    """Those that have begun them.

    Attributes:
        inbox: what has become of some, of which it is not told yet.
    """

    inbox: list[Moved]

    def answered(self) -> int:
        """Take what is in the inbox; returns how many."""


class QuickIoEngine(Protocol):
    """An `IoEngine` that moves bytes for the `DirectLane` of a disk as well, as not each does.

    Attributes:
        free: operations that can still be queued.
    """

    free: int

    def queue_all(self, write: bool, fd: int, ops: list[PooledOp], /) -> None:
        """Queue operations, for which there is room, in memory that their tokens keep."""

    def under_way(self) -> list[Any]:
        """The tokens of all that has not finished."""

    def move(
        self,
        write: bool,
        fd: int,
        offset: int,
        address: int,
        length: int,
        token: Any,
        seconds: float,
        /,
    ) -> int | None:
        """Do one operation of that kind, while there is no other, and wait for it, so long at most.

        Returns:
            Bytes moved, or -errno; None: it goes on, and `reap` will have it.
        """


ADDRESSES: Final[dict[int, int]] = {}
"""Where buffers of the pool lie in memory, by `id`, as `DirectFile.address` has found."""

_KEPT: Final[dict[int, memoryview]] = {}
"""Those buffers, so that each stays what it is. The pool never gives back such short ones either,
so there are hardly more of them than ever were in use at a time."""

_CHANGING: Final = threading.Lock()
"""Disks in other threads have buffers of the pool, too: what has an address is kept."""

_MANY: Final = 256 << 10
_MOST_ADDRESSES: Final = 4096


def remember(buf: memoryview, address: int) -> None:
    """Where a buffer of the pool lies: noted of short ones."""
    if len(buf) >= _MANY:
        return
    with _CHANGING:
        if len(ADDRESSES) >= _MOST_ADDRESSES:
            ADDRESSES.clear()
            _KEPT.clear()
        _KEPT[id(buf)] = buf
        ADDRESSES[id(buf)] = address
