"""An image that lies below another: opened by a driver, and used by it without blocking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from tapcore.interface.extent import Extent


Then: TypeAlias = Callable[[int], object]
"""`then(res)`: what was queued has finished, with 0 or -errno."""


class Below(Protocol):
    """What `DiskDriver.open_below` returns: a disk, with all its parents.

    Poll `fileno()` (`dd.io_fd[0] = below.fileno()`); when it is readable, call `reap`. Offsets and
    lengths are bytes, and lie inside the disk; they need not be whole sectors.

    Attributes:
        name: of the image, `HANDLE:PATH`.
        size: bytes.
        sector_size: bytes, of which it is best read and written in whole multiples.
        read_only: it cannot be written.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def sector_size(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def fileno(self) -> int:
        """To be polled."""

    def queue_read(self, offset: int, buf: memoryview, then: Then) -> int:
        """Fill a buffer; `then(0 or -errno)` is called, now or later. Returns 0: it is taken."""

    def queue_write(self, offset: int, buf: memoryview, then: Then) -> int:
        """Write a buffer, which must not be changed until `then` is called."""

    def queue_flush(self, then: Then) -> int:
        """Make safe on disk what was answered before this call."""

    def queue_discard(self, offset: int, length: int, then: Then) -> int:
        """The content of a range is no longer needed."""

    def queue_zeroes(self, offset: int, length: int, may_unmap: bool, then: Then) -> int:
        """Make a range zeroes, quicker than by writing them; `then(-EOPNOTSUPP)`: it cannot."""

    def submit(self) -> None:
        """Hand in what was queued: at the end of a batch (`td_submit`)."""

    def reap(self) -> None:
        """Give the answers that have come; submits what is queued meanwhile."""

    def read(self, offset: int, length: int) -> bytes:
        """Read now, and wait for it: for `td_open` and its like.

        Raises:
            OSError: it cannot be read.
        """

    def write(self, offset: int, data: bytes) -> None:
        """Write now, and wait for it.

        Raises:
            OSError: it cannot be written.
        """

    def flush(self) -> None:
        """Wait until all is on disk.

        Raises:
            OSError: it is not.
        """

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """What lies where, of the whole chain, as of `td_extents`; sectors of this disk."""

    def files(self) -> list[str]:
        """Paths of the files that it consists of, parents included."""

    def close(self) -> None:
        """Wait for what is under way, flush, close.

        Raises:
            TapError: what was written may not be on disk; it is closed all the same.
        """
