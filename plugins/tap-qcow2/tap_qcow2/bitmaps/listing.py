"""What the hooks ask about bitmaps: which there are, and what they call changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tap_qcow2.bitmaps.bits import either, set_runs
from tap_qcow2.ondisk.bitmapdirectory import (
    BitmapEntry,
    disk_size,
    fits,
    read_bits,
    read_directory,
    read_table,
    valid,
)
from tap_qcow2.ondisk.entries import BITS_ALL_SET
from tapcore import Bitmap, ImageFormatError, UsageError

if TYPE_CHECKING:
    from tap_qcow2.facts import Facts
    from tap_qcow2.image import Image


def bitmaps(image: Image | Facts) -> list[Bitmap]:
    """The bitmaps of an image.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    try:
        entries = read_directory(image.file, image.header)
    except ImageFormatError:
        if valid(image.header):
            raise
        return []  # left by somebody who did not know of it: it may lead anywhere by now
    return [
        Bitmap(
            name=entry.name,
            granularity=1 << entry.granularity_bits,
            enabled=entry.auto,
            inconsistent=not _readable(image, entry),
        )
        for entry in entries
    ]


def _readable(image: Image | Facts, entry: BitmapEntry) -> bool:
    if image.tracker is not None and image.tracker.holds(entry.name):
        return True
    return valid(image.header) and entry.known and not entry.in_use and fits(image.header, entry)


def bitmap_ranges(image: Image, name: str) -> Iterator[tuple[int, int]]:
    """What a bitmap calls changed: (start, length) in bytes, in order, joined, inside the disk.

    Args:
        image: open; where it is written, what was recorded since counts.
        name: of the bitmap.

    Raises:
        UsageError: there is no such bitmap, or it says nothing.
        ImageFormatError: it cannot be true.
        OSError: as the system says.
    """
    entries = read_directory(image.file, image.header)
    entry = next((each for each in entries if each.name == name), None)
    if entry is None:
        names = ", ".join(each.name for each in entries) or "none"
        raise UsageError(f"has no bitmap '{name}' (there are: {names})")
    if not _readable(image, entry):
        raise UsageError(f"has a bitmap '{name}' that is inconsistent: it was not saved properly")
    recorded = {} if image.tracker is None else image.tracker.recorded(name)
    return _ranges(image, entry, recorded)


def _ranges(
    image: Image, entry: BitmapEntry, recorded: Mapping[int, bytes | bytearray]
) -> Iterator[tuple[int, int]]:
    size = disk_size(image.header)
    shift = entry.granularity_bits
    start = end = 0
    for first, behind in _bits(image, entry, recorded):
        first, behind = first << shift, behind << shift
        if first > end:
            if start < min(end, size):
                yield start, min(end, size) - start
            start = first
        end = behind
    if start < min(end, size):
        yield start, min(end, size) - start


def _bits(
    image: Image, entry: BitmapEntry, recorded: Mapping[int, bytes | bytearray]
) -> Iterator[tuple[int, int]]:
    """Runs of bits, table entry by table entry."""
    per_cluster = image.geometry.cluster_size << 3
    table = read_table(image.file, entry)
    for number in range(max(len(table), *(each + 1 for each in recorded), 0)):
        word = table[number] if number < len(table) else 0
        more = recorded.get(number)
        base = number * per_cluster
        if word == BITS_ALL_SET:
            yield base, base + per_cluster
        elif word or more is not None:
            content = read_bits(image.file, image.header, word)
            for first, end in set_runs(content if more is None else either(content, more)):
                yield base + first, base + end
