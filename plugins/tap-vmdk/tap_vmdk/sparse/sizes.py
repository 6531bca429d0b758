"""Sizes in sparse files: rounded up, and what nobody could have written."""

from __future__ import annotations

from typing import Final

from tapcore import ImageFormatError

MAX_TABLES: Final = 1 << 22
"""Of one file, whose directory is read into memory: 64 TiB in the grains of SESparse."""


def round_up(value: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-value // unit) * unit


def check_tables(tables: int) -> None:
    """Refuse a file that claims to have more tables than anybody could have written.

    Args:
        tables: how many grain tables its size and its grains demand.

    Raises:
        ImageFormatError: so it is.
    """
    if tables > MAX_TABLES:
        raise ImageFormatError(f"would have {tables} grain tables, more than {MAX_TABLES}")
