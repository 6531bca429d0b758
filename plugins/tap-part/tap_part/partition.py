"""What a table says of a partition, and what is checked of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from tapcore import ImageFormatError


class Disk(Protocol):
    """The disk with the table.

    Attributes:
        size: bytes.
    """

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@attrs.frozen
class Partition:
    """A partition.

    Attributes:
        number: as Linux counts them.
        start: bytes from the start of the disk.
        length: bytes.
        kind: what the table calls it: a byte in hex, or a GUID.
        name: a GPT's; empty where it has none.
        table: "mbr" or "gpt".
    """

    number: int
    start: int
    length: int
    kind: str
    name: str = ""
    table: str = "mbr"

    @property
    def end(self) -> int:
        """First byte past it."""
        return self.start + self.length


def chosen(found: Sequence[Partition], number: int, size: int) -> Partition:
    """The partition that is wanted, if it can be trusted.

    Args:
        found: all of the table.
        number: of the one.
        size: of the disk, bytes.

    Raises:
        ImageFormatError: there is none, it does not lie on the disk, or another one lies on it.
    """
    here = [each for each in found if each.number == number]
    if not here:
        numbers = ", ".join(str(each.number) for each in found) or "none at all"
        raise ImageFormatError(f"has no partition {number} (there are: {numbers})")
    partition = here[0]
    if partition.end > size:
        text = f"ends at {partition.end}, past the end of the disk ({size} bytes)"
        raise ImageFormatError(f"its partition {number} {text}")
    for other in found:
        if other is not partition and other.start < partition.end and partition.start < other.end:
            raise ImageFormatError(f"its partitions {number} and {other.number} overlap")
    return partition
