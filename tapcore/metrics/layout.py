"""The file of a disk's counters: a head, then a cell for each operation and size class.

All numbers are little-endian; those of 64 bits stand at multiples of 8. `docs/metrics.md` tells the
same to whoever reads it without Python.
"""

from __future__ import annotations

import struct
from typing import Final

from tapcore.metrics.buckets import BUCKETS
from tapcore.metrics.operations import OPERATIONS, SIZES

MAGIC: Final = b"TAPMETER"
VERSION: Final = 1

HISTOGRAMS: Final = ("total", "waiting", "driver", "replying")
"""Of a cell: from taken to answered; and its parts, of what a driver was asked for: from taken to
queued, from queued to the driver's answer, from there to the answer."""

HEAD: Final = struct.Struct("<8s6I2Q")
"""Magic; version, bytes of the head, of a cell, operations, size classes, buckets of a histogram;
process, time of the start (Unix, ns)."""

SEQUENCE: Final = struct.Struct("<Q")
SEQUENCE_AT: Final = 64
"""Odd while the rest is being written. It has grown by two whenever anything else has changed."""

GAUGES: Final = struct.Struct("<6Q")
GAUGES_AT: Final = 72
"""Time of this state (Unix, ns); requests taken and not answered, those of them that wait for their
driver; clients; requests whose client has gone before the answer; size of the disk (bytes)."""

TEXTS: Final = struct.Struct("<64s512s2048s")
TEXTS_AT: Final = 256
"""Driver, name, image: UTF-8, cut where too long, filled up with zeroes."""

CELLS_AT: Final = 4096
COUNTERS: Final = struct.Struct("<4Q")
"""Of a cell: requests answered, those of them that failed, bytes of those that did not, requests
that went past the driver."""

HISTOGRAM: Final = struct.Struct(f"<{1 + BUCKETS}Q")
"""Sum of the durations (µs), and how many lie in each bucket."""

CELL_SIZE: Final = COUNTERS.size + len(HISTOGRAMS) * HISTOGRAM.size
PAGE_SIZE: Final = CELLS_AT + len(OPERATIONS) * len(SIZES) * CELL_SIZE


def cell_at(operation: int, size: int) -> int:
    """Where a cell begins, in bytes."""
    return CELLS_AT + (operation * len(SIZES) + size) * CELL_SIZE
