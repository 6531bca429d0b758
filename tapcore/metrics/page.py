"""The file in which a disk's counters are shown: written by one process, read by anybody.

It is written through calls and not through a mapping: who cuts it short, or a full file system,
costs the counters and not the disk.
"""

from __future__ import annotations

import os
import time
from typing import Final

from tapcore.metrics import layout
from tapcore.metrics.buckets import BUCKETS
from tapcore.metrics.cells import Cell, Histogram
from tapcore.metrics.meter import Meter
from tapcore.metrics.operations import OPERATIONS, SIZES

_MODE: Final = 0o644


class Page:
    """Shows what a meter has counted.

    Args:
        meter: of the disk.
        fd: of the file, which is empty; it is closed with the page.

    Attributes:
        meter: as given.
    """

    def __init__(self, meter: Meter, fd: int) -> None:
        self.meter = meter
        self._fd = fd
        self._sequence = 0
        self._shown: dict[tuple[int, int], tuple[int, int]] = {}
        os.ftruncate(fd, layout.PAGE_SIZE)
        self.publish()
        # the magic comes last: who finds it finds a whole page
        self._write(0, _head())

    @classmethod
    def in_file(cls, meter: Meter, path: str) -> Page:
        """Make the file anew: who has the old one open keeps that.

        Raises:
            OSError: it cannot be made.
        """
        beside = f"{path}.{os.getpid()}.new"
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            page = cls(meter, fd)
            os.rename(beside, path)
        except BaseException:
            os.close(fd)
            os.unlink(beside)
            raise
        return page

    @classmethod
    def in_memory(cls, meter: Meter) -> Page:
        """Without a name, for this process and those it starts."""
        return cls(meter, os.memfd_create("tapcore-metrics", os.MFD_CLOEXEC))

    def fileno(self) -> int:
        """Of the file."""
        return self._fd

    def publish(self) -> None:
        """Show what has been counted since the last time.

        Raises:
            OSError: it cannot be written.
        """
        meter = self.meter
        self._write_sequence()
        in_flight, waiting = meter.in_flight, meter.waiting()
        gauges = (in_flight, waiting, len(meter.clients), meter.gone, meter.size)
        self._write(layout.GAUGES_AT, layout.GAUGES.pack(time.time_ns(), *gauges))
        self._write(layout.TEXTS_AT, layout.TEXTS.pack(*map(_text, _texts(meter))))
        for operation, size, cell in meter.cells():
            place, now = (operation, size), (cell.answered, cell.driven)
            answered, driven = self._shown.get(place, (0, 0))
            if cell.answered != answered:
                self._write(layout.cell_at(*place), _cell(cell, whole=cell.driven != driven))
                self._shown[place] = now
        self._write_sequence()

    def _write_sequence(self) -> None:
        self._sequence += 1
        self._write(layout.SEQUENCE_AT, layout.SEQUENCE.pack(self._sequence))

    def _write(self, at: int, content: bytes) -> None:
        os.pwrite(self._fd, content, at)

    def close(self) -> None:
        """The file stays as it is."""
        os.close(self._fd)


def _head() -> bytes:
    return layout.HEAD.pack(
        layout.MAGIC,
        layout.VERSION,
        layout.CELLS_AT,
        layout.CELL_SIZE,
        len(OPERATIONS),
        len(SIZES),
        BUCKETS,
        os.getpid(),
        time.time_ns(),
    )


def _texts(meter: Meter) -> tuple[str, str, str]:
    return meter.driver, meter.name, meter.image


def _text(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _cell(cell: Cell, *, whole: bool) -> bytes:
    counters = layout.COUNTERS.pack(cell.answered, cell.errors, cell.bytes, cell.moved)
    shown = [cell.total]
    if whole:
        shown += [cell.waiting, cell.driver, cell.replying]
    return counters + b"".join(map(_histogram, shown))


def _histogram(histogram: Histogram) -> bytes:
    return layout.HISTOGRAM.pack(histogram.sum, *histogram.counts)
