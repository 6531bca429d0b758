"""What a bitmap is doing, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapcore.interface.results import Bitmap


def state_of(bitmap: Bitmap) -> str:
    """Whether it records, for a person."""
    if bitmap.inconsistent:
        return "inconsistent"
    return "recording" if bitmap.enabled else "not recording"
