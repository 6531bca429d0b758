"""QEMU copy-on-write images, versions 2 and 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tap_qcow2.blktap import qcow2_create

__all__ = ["qcow2_create"]


def __getattr__(name: str) -> Any:
    """`qcow2_create`, imported late: the driver does without it."""
    if name != "qcow2_create":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tap_qcow2.blktap import qcow2_create

    return qcow2_create
