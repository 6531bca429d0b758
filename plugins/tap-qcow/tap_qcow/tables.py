"""The tables in the file: numbers of 64 bits, big-endian (an old L1 table: little)."""

from __future__ import annotations

import errno
from typing import Final

from tapcore import ImageFile, ImageFormatError
from tapcore.clusters import Coding, Read, Table

L2: Final = Coding("Q", "big")
LITTLE: Final = Coding("Q", "little")


def l1_of(content: bytes, offset: int, file_size: int) -> Table:
    """The L1 table; what its entries can be tells their byte order.

    blktap wrote it little-endian until 2008, and later marked neither kind reliably.

    Args:
        content: of the table.
        offset: where it lies, bytes.
        file_size: bytes.
    """
    entries = L2.decode(content)
    if max(entries, default=0) >= file_size:
        swapped = LITTLE.decode(content)
        if max(swapped) < file_size and not any(entry & 511 for entry in swapped):
            return Table(-1, offset, swapped, LITTLE)
    return Table(-1, offset, entries, L2)


def read_l2(file: ImageFile, index: int, offset: int, length: int, read: Read) -> Table | None:
    """An L2 table, by one of the file's ways of reading; offset and length in bytes.

    Raises:
        ImageFormatError: it is not, or not wholly, in the file.
    """
    end = offset + length
    if end > file.size and end > file.look_again():
        # zeroes for what it lacks would say that nothing is there
        how = "lies past" if offset >= file.size else "is cut by"
        text = f"its L2 table, at offset {offset:#x}, {how} the end of the file"
        raise ImageFormatError(text, errno=errno.EIO)
    content = read(offset, length)
    return None if content is None else Table(index, offset, L2.decode(content), L2)
