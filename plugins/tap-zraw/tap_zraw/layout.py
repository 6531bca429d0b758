"""How the parts of a disk are come by; a part is what is unpacked, and kept, at a time."""

from __future__ import annotations

from typing import Final, Protocol

LARGEST_PART: Final = 32 << 20
"""Bytes of a disk that are unpacked at a time."""


class Layout(Protocol):
    """The parts of one disk.

    Attributes:
        size: of the disk, bytes.
        largest: the most bytes that a part has.
    """

    @property
    def size(self) -> int: ...

    @property
    def largest(self) -> int: ...

    def find(self, offset: int) -> int:
        """The part that holds a byte of the disk, by number."""

    def bounds(self, index: int) -> tuple[int, int]:
        """First byte of a part on the disk, and the first past it."""

    def unpack(self, index: int) -> bytes:
        """The content of a part; waits for the disk, in a thread, of which there are several.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """

    def is_zero(self, index: int) -> bool:
        """Whether a part is known to be zeroes; asks nobody."""

    def zeroes_until(self, index: int, end: int) -> int:
        """The first part, from one on and before `end`, that is not known to be zeroes, or `end`;
        may wait for the disk, and unpack what costs little."""

    def close(self) -> None:
        """Release what it keeps outside of memory."""
