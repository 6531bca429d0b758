"""Recording what is written in the bitmaps that want it, as QEMU does.

At the first change these bitmaps are marked as in use on disk: after a crash they say nothing,
which is true. What changes is kept in memory, and brought to the disk when the image is closed (see
`bitmaps.store`). Bitmaps without the flag AUTO are not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from tap_qcow2.bitmaps.recording import Recording
from tap_qcow2.ondisk.bitmapdirectory import (
    IN_USE,
    BitmapEntry,
    disk_size,
    fits,
    read_directory,
    valid,
    write_flags,
)
from tap_qcow2.ondisk.header import Header
from tap_qcow2.tables.metadata import Metadata
from tapcore import TapError, describe_error
from tapcore.clusters import Writeback

log = logging.getLogger(__name__)


def wants_tracking(header: Header, entry: BitmapEntry) -> bool:
    """Whether changes are to be recorded in a bitmap, and it is in a state for that."""
    return entry.auto and entry.known and not entry.in_use and fits(header, entry)


class BitmapTracker:
    """The bitmaps of an image that are in use by whoever has it open: here.

    Args:
        name: of the image, for the log.
        metadata: of it.
        writeback: of its tables.
    """

    def __init__(self, name: str, metadata: Metadata, writeback: Writeback) -> None:
        self._name = name
        self._metadata = metadata
        self._writeback = writeback
        self._held: dict[str, Recording] = {}
        self._marking: list[Recording] = []

    def holds(self, name: str) -> bool:
        """Whether a bitmap is marked as in use on disk, and known here."""
        return name in self._held

    def recorded(self, name: str) -> Mapping[int, bytes | bytearray]:
        """Bits that are set and not on disk, by number of the table entry."""
        return self._held[name].recorded() if name in self._held else {}

    def begin(self) -> None:
        """Before the first change: mark the bitmaps that will record it, and wait for the disk.

        Raises:
            ImageFormatError: the directory cannot be true.
            OSError: as the system says.
        """
        self._marking += self.hold(_tracked(self._metadata))

    def hold(self, entries: Iterable[BitmapEntry]) -> list[Recording]:
        """Mark bitmaps that are not held yet as in use, on disk when this returns.

        Raises:
            OSError: as the system says; none of them is held.
        """
        metadata = self._metadata
        taken = [
            Recording(entry, metadata.geometry.cluster_size, disk_size(metadata.header))
            for entry in entries
            if entry.name not in self._held
        ]
        for recording in taken:
            write_flags(metadata.file, recording.entry, recording.entry.flags | IN_USE)
        if taken:
            metadata.flush()
        self._held.update({recording.entry.name: recording for recording in taken})
        return taken

    def mark(self, sector: int, nb_sectors: int) -> None:
        """These sectors are about to change."""
        last = sector + nb_sectors - 1
        for recording in self._marking:
            recording.mark(sector, last)

    def store(self) -> None:
        """Bring what was recorded to the disk, and mark the bitmaps as saved. Nothing is in flight.

        A failure is logged: the bitmaps stay marked as in use, and the image is as good as before.
        """
        from tap_qcow2.bitmaps.store import store_bitmaps

        held, self._held, self._marking = list(self._held.values()), {}, []
        if not held:
            return
        try:
            store_bitmaps(self._metadata, self._writeback, held)
        except (TapError, OSError) as exc:
            log.error("%s: its bitmaps are inconsistent now: %s", self._name, describe_error(exc))


def wants_tracker(metadata: Metadata) -> bool:
    """Whether changes of an image are to be recorded in one of its bitmaps.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    return valid(metadata.header) and bool(_tracked(metadata))


def _tracked(metadata: Metadata) -> list[BitmapEntry]:
    file, header = metadata.file, metadata.header
    return [each for each in read_directory(file, header) if wants_tracking(header, each)]
