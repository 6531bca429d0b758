"""How people write sizes: `10G`, `+512M`."""

from __future__ import annotations

import re
from operator import index

from tapcore.constants import DEFAULT_SECTOR_SIZE, MAX_DISK_SECTORS
from tapcore.errors import UsageError

_PREFIXES = "KMGTP"
_SIZE = rf"(\d{{1,20}})(?:\.(\d{{1,9}}))? ?(?:B|([{_PREFIXES}])(i?B)?)?"


def parse_size(text: str) -> int:
    """Bytes from `4096`, `64K`, `1.5T`; `1.5TiB` and `1.5 TiB` are the same, `1.5TB` is decimal.

    Args:
        text: a number, with a fraction only where a unit larger than a byte follows.

    Raises:
        UsageError: not a size, or larger than a disk can be.
    """
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise UsageError(f"'{text}' is not a size (examples: 4096, 64K, 10G, 1.5T)")
    whole, fraction, prefix, ending = match.groups()
    base = 1000 if ending in ("B", "b") else 1024  # as GNU's programs have it: G, GiB and GB
    factor = base ** (_PREFIXES.index(prefix.upper()) + 1) if prefix else 1
    if fraction and factor == 1:
        raise UsageError(f"'{text}' is not a whole number of bytes")
    size = int(whole) * factor
    if fraction:
        size += int(fraction) * factor // 10 ** len(fraction)
    return _possible(size, text)


def disk_size(text: str) -> int:
    """A virtual disk's size in bytes: as `parse_size`, rounded up to whole sectors."""
    return _possible(round_up_to_sector(parse_size(text)), text)


def _possible(size: int, text: str) -> int:
    if size > MAX_DISK_SECTORS * DEFAULT_SECTOR_SIZE:
        raise UsageError(f"'{text}' is larger than a disk can be (8 EiB less 512 bytes)")
    return size


def checked_size(size: int | str, image: str) -> int:
    """A virtual disk's size in bytes that a program gives, as it is; or as text, `10G`.

    Raises:
        UsageError: no disk can have it.
        TypeError: it is no whole number.
    """
    if isinstance(size, str):
        try:
            size = disk_size(size)
        except UsageError as exc:
            exc.image = image
            raise
    size = index(size)
    if size <= 0:
        raise UsageError("a disk needs at least one sector (512 bytes)", image=image)
    if size % DEFAULT_SECTOR_SIZE:
        raise UsageError("a size must be a multiple of 512 bytes", image=image)
    try:
        return _possible(size, str(size))
    except UsageError as exc:
        exc.image = image
        raise


def round_up_to_sector(size: int) -> int:
    """Bytes, rounded up to a multiple of 512."""
    return -(-size // DEFAULT_SECTOR_SIZE) * DEFAULT_SECTOR_SIZE


def changed_size(text: str, current: int) -> int:
    """The new size (bytes) that `SIZE`, `+N` or `-N` means for a disk of `current` bytes."""
    if text.startswith("+"):
        return _possible(round_up_to_sector(current + parse_size(text[1:])), text)
    if text.startswith("-"):
        return max(round_up_to_sector(current - parse_size(text[1:])), 0)
    return disk_size(text)


def format_size(size: int) -> str:
    """Bytes for a person: `512 B`, `64 KiB`, `1.5 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
