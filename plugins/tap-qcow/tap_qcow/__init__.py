"""QEMU copy-on-write disk images, version 1."""

from tap_qcow.blktap import qcow_create

__all__ = ["qcow_create"]
