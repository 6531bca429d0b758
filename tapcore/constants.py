"""Numbers of the driver interface; names and values are blktap's.

Sectors are 512 bytes everywhere in the interface, whatever `sector_size` a disk reports.
"""

from __future__ import annotations

from typing import Final

SECTOR_SHIFT: Final = 9
DEFAULT_SECTOR_SIZE: Final = 1 << SECTOR_SHIFT
"""Unit (bytes) of every `sector` and `nb_sectors` argument."""

MAX_SEGMENTS_PER_REQ: Final = 11
"""Segments in one request of the shared-memory ring."""

MAX_IOFD: Final = 2
"""File descriptors that one open image may ask to have polled."""

BLK_NOT_ALLOCATED: Final = 99
"""Callback result: these sectors are a hole in this image; ask the parent."""

TD_NO_PARENT: Final = 1
"""Result of `td_get_parent_id`: the image stands alone."""

TD_RDONLY: Final = 1
"""Open flag, a bit: the image must not be changed."""

VDISK_CDROM: Final = 1
VDISK_REMOVABLE: Final = 2
VDISK_READONLY: Final = 4
"""Bits of `info`."""

HOOKS_VERSION: Final = 1
"""Major version of the hooks. A plugin states the one that it was written for as a number of its
own (`api=1`): this one changes with the core."""

OLDEST_HOOKS_VERSION: Final = 1
"""A plugin that was written for an older one than this is reported and skipped."""

MAX_CHAIN_DEPTH: Final = 64
"""Images in one chain, the child included."""

MAX_DISK_SECTORS: Final = ((1 << 63) - 1) >> SECTOR_SHIFT
"""Largest disk (sectors): host file offsets are signed 64-bit byte counts."""

MAX_CLUSTER_SIZE: Final = 64 << 20
"""Largest unit of allocation (bytes): a cluster is held in memory whole."""
