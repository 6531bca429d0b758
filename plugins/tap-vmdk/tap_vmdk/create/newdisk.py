"""A new disk as it was asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from tap_vmdk.options import MONOLITHIC_SPARSE, SPLIT_SPARSE, STREAM
from tap_vmdk.sparse.header import MAX_CAPACITY
from tapcore import UsageError

SPLIT_SECTORS: Final = 4192256
"""Of an extent of a split disk: 2047 MiB, as VMware splits."""


@attrs.frozen
class NewDisk:
    """What a new disk is to be.

    Attributes:
        sectors: its size.
        subformat: a choice of the option of that name.
        adapter: the same.
        hwversion: a number.
        zeroed_grain: whether zeroes may be entries of a table.
    """

    sectors: int
    subformat: str
    adapter: str
    hwversion: int
    zeroed_grain: bool

    @property
    def heads(self) -> int:
        """Of the geometry that the adapter pretends."""
        return 16 if self.adapter == "ide" else 255

    @property
    def cylinders(self) -> int:
        """Of the geometry that the adapter pretends."""
        return max(-(-self.sectors // (63 * self.heads)), 1)


def new_disk(size: int | None, options: Mapping[str, str]) -> NewDisk:
    """Check what was asked for.

    Args:
        size: bytes.
        options: as of `td_create`.

    Raises:
        UsageError: it cannot be.
    """
    if not size or size % 512:
        raise UsageError("a VMDK needs a size, of at least one sector")
    if size // 512 > MAX_CAPACITY // 2:
        raise UsageError("is too large for a VMDK (more than 64 TiB)")
    subformat = options.get("subformat", MONOLITHIC_SPARSE)
    hwversion = options.get("hwversion", "4")
    if not (hwversion.isascii() and hwversion.isdigit() and 0 < int(hwversion[:9]) < 1000):
        raise UsageError(f"'{hwversion}' is not a version of virtual hardware (1 to 999)")
    zeroed_grain = options.get("zeroed_grain", "off") == "on"
    if zeroed_grain and subformat not in (MONOLITHIC_SPARSE, SPLIT_SPARSE):
        raise UsageError(f"zeroed_grain is nothing for a {subformat} disk")
    default = "lsilogic" if subformat == STREAM else "ide"
    adapter = options.get("adapter_type") or default
    return NewDisk(size // 512, subformat, adapter, int(hwversion), zeroed_grain)
