"""Disks from Python: a seekable binary file over any image."""

from tapcore.disk.disk import Disk
from tapcore.disk.opendisk import open

__all__ = ["Disk", "open"]
