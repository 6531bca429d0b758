"""QEMU copy-on-write disk images, version 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tap_qcow.blktap import qcow_create

__all__ = ["qcow_create"]


def __getattr__(name: str) -> Any:
    """`qcow_create`, imported late: the driver does without it."""
    if name != "qcow_create":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tap_qcow.blktap import qcow_create

    return qcow_create
