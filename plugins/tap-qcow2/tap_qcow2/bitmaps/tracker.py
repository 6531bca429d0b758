"""Recording what is written in the bitmaps that want it, as QEMU does.

At the first change these bitmaps are marked as in use on disk: after a crash they say nothing,
which is true. What changes is kept in memory, and brought to the disk when the image is closed (see
`bitmaps.store`). Bitmaps without the flag AUTO are not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tap_qcow2.bitmaps.bits import fill
from tap_qcow2.bitmaps.directory import (
    IN_USE,
    MAX_BITMAP_BYTES,
    BitmapEntry,
    disk_size,
    fits,
    read_directory,
    table_entries,
)
from tapcore import SECTOR_SHIFT, TapError, UsageError, describe_error

if TYPE_CHECKING:
    from tap_qcow2.image import Image

log = logging.getLogger(__name__)


def wants_tracking(image: Image, entry: BitmapEntry) -> bool:
    """Whether changes are to be recorded in a bitmap, and it is in a state for that."""
    return entry.auto and entry.known and not entry.in_use and fits(image, entry)


class Recording:
    """One bitmap that is marked as in use, and its bits that were set since.

    Bits are kept in pages, as many as a cluster holds, where any is set.

    Args:
        entry: as it was before it was marked.
        cluster_size: bytes.
        size: of the disk at that time, bytes.

    Attributes:
        pages: number of the table entry: its new bits.
        full: numbers of table entries of which every bit is set; they have no page.
    """

    __slots__ = (
        "_bytes_mask",
        "_page_bytes",
        "_page_shift",
        "_shift",
        "entry",
        "full",
        "pages",
        "size",
    )

    def __init__(self, entry: BitmapEntry, cluster_size: int, size: int) -> None:
        self.entry = entry
        self.size = size
        self.pages: dict[int, bytearray] = {}
        self.full: set[int] = set()
        self._page_bytes = cluster_size
        self._bytes_mask = cluster_size - 1
        self._page_shift = cluster_size.bit_length() + 2
        self._shift = entry.granularity_bits - SECTOR_SHIFT

    def mark(self, first_sector: int, last_sector: int) -> None:
        """These sectors, up to and with the last one, were changed."""
        first, last = first_sector >> self._shift, last_sector >> self._shift
        if first != last:
            self._mark_run(first, last + 1)
            return
        number = first >> self._page_shift
        page = self.pages.get(number)
        if page is None:
            if number in self.full:
                return
            page = self.pages[number] = bytearray(self._page_bytes)
        page[first >> 3 & self._bytes_mask] |= 1 << (first & 7)

    def _mark_run(self, first: int, end: int) -> None:
        per_page = 1 << self._page_shift
        while first < end:
            number = first >> self._page_shift
            base = number << self._page_shift
            stop = min(end, base + per_page)
            if stop - first == per_page:
                self.full.add(number)
                self.pages.pop(number, None)
            elif number not in self.full:
                page = self.pages.get(number)
                if page is None:
                    page = self.pages[number] = bytearray(self._page_bytes)
                fill(page, first - base, stop - base)
            first = stop

    def recorded(self) -> dict[int, bytes | bytearray]:
        """The new bits, by number of the table entry."""
        ones = b"\xff" * self._page_bytes if self.full else b""
        return {**self.pages, **dict.fromkeys(self.full, ones)}


class BitmapTracker:
    """The bitmaps of an image that are in use by whoever has it open: here.

    Args:
        image: open for writing.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
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
        image = self._image
        entries = [each for each in read_directory(image) if wants_tracking(image, each)]
        self._marking += self.hold(entries)

    def hold(self, entries: Iterable[BitmapEntry]) -> list[Recording]:
        """Mark bitmaps that are not held yet as in use, on disk when this returns.

        Raises:
            OSError: as the system says; none of them is held.
        """
        image = self._image
        taken = [
            Recording(entry, image.geometry.cluster_size, disk_size(image))
            for entry in entries
            if entry.name not in self._held
        ]
        for recording in taken:
            write_flags(image, recording.entry, recording.entry.flags | IN_USE)
        if taken:
            image.flush_file()
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
            store_bitmaps(self._image, held)
        except (TapError, OSError) as exc:
            name = self._image.dd.name
            log.error("%s: its bitmaps are inconsistent now: %s", name, describe_error(exc))


def write_flags(image: Image, entry: BitmapEntry, flags: int) -> None:
    """Change a bitmap's flags in the directory: four bytes, which lie in one sector."""
    image.file.write_metadata(entry.place + 12, flags.to_bytes(4, "big"))


def hold_for_resize(image: Image, old: int, new: int) -> None:
    """See `bitmaps.directory.resize_bitmaps`."""
    changing = []
    for entry in read_directory(image):
        held = image.tracker is not None and image.tracker.holds(entry.name)
        if not held and (entry.in_use or (entry.known and not fits(image, entry))):
            continue  # it says nothing, whatever its size
        if not entry.known:
            raise UsageError(f"has a bitmap '{entry.name}' that cannot be resized: it is not known")
        needed = table_entries(image, entry, new)
        if needed << image.cluster_bits > MAX_BITMAP_BYTES:
            raise UsageError(f"its bitmap '{entry.name}' would become too large for that size")
        if new < old or needed != entry.table_size:
            changing.append(entry)
    if not changing:
        return
    if image.tracker is None:
        image.tracker = BitmapTracker(image)
        image.choose_paths()
    image.tracker.hold(changing)
