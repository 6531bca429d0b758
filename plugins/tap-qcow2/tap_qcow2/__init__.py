"""QEMU copy-on-write images, versions 2 and 3."""

from tap_qcow2.blktap import qcow2_create

__all__ = ["qcow2_create"]
