"""Bitmaps of a disk whose size changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tap_qcow2.ondisk.bitmapdirectory import (
    MAX_BITMAP_BYTES,
    BitmapEntry,
    fits,
    read_directory,
    table_entries,
    valid,
)
from tapcore import UsageError

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def resize_bitmaps(image: Image, old: int, new: int) -> None:
    """Before the disk's size changes: bitmaps that have to change with it do so at a clean close.

    Until then they are marked as in use on disk.

    Args:
        image: open for writing, with nothing in flight.
        old: its size, bytes.
        new: the size that it will have, bytes.

    Raises:
        UsageError: a bitmap cannot have the new size.
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    if not valid(image.header):
        return
    entries = read_directory(image.file, image.header)
    changing = [each for each in entries if _changes(image, each, old, new)]
    if changing:
        image.track_bitmaps().hold(changing)


def _changes(image: Image, entry: BitmapEntry, old: int, new: int) -> bool:
    """Whether a bitmap has to change with the disk's size; raises UsageError where it cannot."""
    held = image.tracker is not None and image.tracker.holds(entry.name)
    if not held and (entry.in_use or (entry.known and not fits(image.header, entry))):
        return False  # it says nothing, whatever its size
    if not entry.known:
        raise UsageError(f"has a bitmap '{entry.name}' that cannot be resized: it is not known")
    needed = table_entries(image.header, entry, new)
    if needed << image.cluster_bits > MAX_BITMAP_BYTES:
        raise UsageError(f"its bitmap '{entry.name}' would become too large for that size")
    return new < old or needed != entry.table_size
