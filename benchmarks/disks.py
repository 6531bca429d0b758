"""The raw files that are served: identical, fully allocated, and in or out of the page cache."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

_CHUNK = 1 << 20
_POOL = random.Random(2006).randbytes(16 * _CHUNK)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if not match:
        raise ValueError(f"not a size: {text}")
    size = int(match[1]) * _UNITS[match[2]]
    if size < 16 * _CHUNK or size % _CHUNK:
        raise ValueError("the size must be a multiple of 1M, and at least 16M")
    return size


def make(path: Path, size: int) -> None:
    """Write the file in full. Never a reflink or a sparse file: both allocate when written to."""
    with open(path, "wb", buffering=0) as file:
        for offset in range(0, size, _CHUNK):
            start = offset % len(_POOL)
            file.write(memoryview(_POOL)[start : start + _CHUNK])
        os.fsync(file.fileno())


def warm(path: Path) -> None:
    """Bring the whole file into the page cache."""
    buffer = bytearray(_CHUNK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def cool(path: Path) -> None:
    """Write back and drop the file's pages, so that O_DIRECT does not meet them."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def have_memory(folder: Path, size: int) -> None:
    """Have memory at hand for a new file, in whosever turn it is made.

    What a virtual machine has freed may have gone back to its host, and costs ten times as much
    to fill as what was in use just now.

    Args:
        folder: where the file will lie.
        size: of it, bytes.
    """
    scrap = folder / "scrap"
    block = bytes(1 << 20)
    with open(scrap, "wb") as file:
        for _ in range(0, size, len(block)):
            file.write(block)
    scrap.unlink()
