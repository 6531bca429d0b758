"""Bitmaps added, removed, cleared, switched on and off, and merged.

A change of the directory writes a new one where nothing is, and lets the header lead to it with one
write; then what only the old one led to is given up. A crash leaves the old directory or the new
one, and at worst leaked clusters. Source: qcow2.rst, "Bitmaps extension".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.bitmapdirectory import (
    AUTO,
    DIRTY_TRACKING,
    EXTENSION,
    GRANULARITY_BITS,
    IN_USE,
    MAX_BITMAP_BYTES,
    MAX_NAME,
    MAX_TABLE_ENTRIES,
    BitmapEntry,
    directory_range,
    disk_size,
    extra_data,
    fits,
    packed_entry,
    read_directory,
    read_table,
    table_entries,
    valid,
    write_flags,
)
from tap_qcow2.ondisk.entries import offsets_of
from tap_qcow2.snapshots.transaction import allocate, changing
from tap_qcow2.tables.structures import metadata_clusters
from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError, UsageError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tap_qcow2.image import Image

_DEFAULT_BITS: Final = range(12, 17)
"""A bit stands for a cluster, but for no less than 4 KiB and no more than 64 KiB: as QEMU's."""


def add_bitmap(image: Image, name: str, granularity: int, *, enabled: bool) -> None:
    """Make a bitmap that calls nothing changed; see `td_bitmap_add`.

    Raises:
        TapError, OSError: nothing has changed.
    """
    if image.header.version < 3:
        raise NotSupportedError("a version 2 image has no bitmaps: amend compat=1.1 first")
    if not 0 < len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME:
        raise UsageError(f"a bitmap's name has 1 to {MAX_NAME} bytes")
    bits = _granularity_bits(image, granularity)
    new = BitmapEntry(0, 0, 0, AUTO if enabled else 0, DIRTY_TRACKING, bits, 0, name)
    with _at_rest(image):
        entries = _entries(image)
        if any(entry.name == name for entry in entries):
            raise UsageError(f"has a bitmap '{name}' already")
        with changing(image) as undo:
            _empty_table(image, new, undo)
            _check_room([*entries, new])
            _replace_directory(image, entries, [*entries, new], undo)


def remove_bitmap(image: Image, name: str) -> None:
    """Forget a bitmap, and give back what it took; see `td_bitmap_remove`.

    Raises:
        TapError, OSError: nothing has changed.
    """
    with _at_rest(image):
        entries = _entries(image)
        entry = _find(entries, name)
        with changing(image) as undo:
            left = [each for each in entries if each is not entry]
            _replace_directory(image, entries, left, undo, given_up=entry)


def clear_bitmap(image: Image, name: str) -> None:
    """Let a bitmap call nothing changed; see `td_bitmap_clear`.

    Raises:
        TapError, OSError: nothing has changed.
    """
    with _at_rest(image):
        entries = _entries(image)
        entry = _usable(image, entries, name)
        new = BitmapEntry(
            0, 0, 0, entry.flags, entry.kind, entry.granularity_bits, entry.extra_size, name
        )
        with changing(image) as undo:
            _empty_table(image, new, undo)
            new.place = entry.place  # where its extra data is
            after = [new if each is entry else each for each in entries]
            _replace_directory(image, entries, after, undo, given_up=entry)


def enable_bitmap(image: Image, name: str, *, enabled: bool) -> None:
    """Record in a bitmap, or no more; see `td_bitmap_enable`.

    Raises:
        TapError, OSError: nothing has changed.
    """
    with _at_rest(image):
        entry = _usable(image, _entries(image), name)
        flags = entry.flags | AUTO if enabled else entry.flags & ~AUTO
        if flags != entry.flags:
            write_flags(image.file, entry, flags)
            image.metadata.flush()


def merge_into_bitmap(image: Image, name: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Let a bitmap call more changed; see `td_bitmap_merge`.

    Raises:
        TapError, OSError: the bitmap is as it was, or after a failure in the middle inconsistent.
    """
    with _at_rest(image):
        entry = _usable(image, _entries(image), name)
        image.begin_change()
        (recording,) = image.track_bitmaps().hold([entry])
        for start, length in ranges:
            recording.mark(start >> SECTOR_SHIFT, (start + length - 1) >> SECTOR_SHIFT)
        image.clean()  # saves it


# ---- the parts -------------------------------------------------------------------------------


@contextmanager
def _at_rest(image: Image) -> Iterator[None]:
    """All bitmaps are saved, and none records what is done meanwhile, which is no content."""
    image.clean()
    tracker, image.tracker = image.tracker, None
    try:
        yield
        image.clean()
    finally:
        image.tracker = tracker
        from tap_qcow2.bitmaps.tracker import wants_tracker

        if wants_tracker(image.metadata):
            image.track_bitmaps()


def _entries(image: Image) -> list[BitmapEntry]:
    """The directory's; what somebody left who did not know of it is none."""
    return read_directory(image.file, image.header) if valid(image.header) else []


def _find(entries: list[BitmapEntry], name: str) -> BitmapEntry:
    entry = next((each for each in entries if each.name == name), None)
    if entry is None:
        names = ", ".join(each.name for each in entries) or "none"
        raise UsageError(f"has no bitmap '{name}' (there are: {names})")
    return entry


def _usable(image: Image, entries: list[BitmapEntry], name: str) -> BitmapEntry:
    entry = _find(entries, name)
    if not entry.known or entry.flags & IN_USE or not fits(image.header, entry):
        text = f"has a bitmap '{name}' that is inconsistent: all that can be done is to remove it"
        raise UsageError(text)
    return entry


def _granularity_bits(image: Image, granularity: int) -> int:
    if not granularity:
        return max(_DEFAULT_BITS[0], min(image.cluster_bits, _DEFAULT_BITS[-1]))
    bits = granularity.bit_length() - 1
    if granularity != 1 << bits or bits not in GRANULARITY_BITS:
        raise UsageError("a bitmap's granularity is a power of two from 512 bytes to 2 GiB")
    return bits


def _empty_table(image: Image, entry: BitmapEntry, undo: ExitStack) -> None:
    """A table of zeroes, for an entry that has none yet."""
    count = table_entries(image.header, entry, disk_size(image.header))
    if count << image.cluster_bits > MAX_BITMAP_BYTES:
        raise UsageError("a bitmap of this granularity would be too large: choose a larger one")
    first, clusters = allocate(image, count * 8, undo)
    entry.table_offset, entry.table_size = first << image.cluster_bits, count
    image.file.write_metadata(entry.table_offset, bytes(clusters << image.cluster_bits))


def _check_room(entries: list[BitmapEntry]) -> None:
    size = sum(len(packed_entry(entry)) + entry.extra_size for entry in entries)
    tables = sum(entry.table_size for entry in entries)
    if (
        len(entries) > layout.MAX_BITMAPS
        or size > layout.MAX_BITMAP_DIRECTORY_BYTES
        or tables > MAX_TABLE_ENTRIES
    ):
        raise NotSupportedError("has no room for another bitmap")


def _replace_directory(
    image: Image,
    before: list[BitmapEntry],
    after: list[BitmapEntry],
    undo: ExitStack,
    *,
    given_up: BitmapEntry | None = None,
) -> None:
    """Write a directory anew and let the header lead to it; then give up what it leads to no more.

    Args:
        image: that `changing` prepared.
        before: entries that are there.
        after: entries that are to be.
        undo: of `changing`.
        given_up: whose table and bits are given up.
    """
    old = _clusters_given_up(image, before, given_up)
    content = b"".join(_packed(image, entry) for entry in after)
    first, clusters = allocate(image, len(content), undo)
    image.writeback.all_now()  # all that is new is counted
    offset = first << image.cluster_bits
    if content:
        image.file.write_metadata(offset, content.ljust(clusters << image.cluster_bits, b"\0"))
    image.metadata.flush()
    _switch(image, (len(after), len(content), offset), undo)
    image.refcounts.released.extend(old)
    image.writeback.all_now()


def _packed(image: Image, entry: BitmapEntry) -> bytes:
    extra = extra_data(image.file, entry) if entry.extra_size else b""
    return packed_entry(entry, extra)


def _switch(image: Image, place: tuple[int, int, int], undo: ExitStack) -> None:
    """One write of the header makes another directory the valid one."""
    header = image.header
    before = header.extensions[:], header.autoclear
    count, length, offset = place
    try:
        packed = EXTENSION.pack(count, 0, length, offset) if count else None
        header.set_extension(layout.EXT_BITMAPS, packed)
        header.autoclear &= ~layout.AUTOCLEAR_BITMAPS
        header.autoclear |= layout.AUTOCLEAR_BITMAPS if count else 0
        image.header_writer.write()
    except BaseException:
        header.extensions, header.autoclear = before
        done = undo.pop_all()  # nobody knows which header is on disk, until the old one is again
        image.header_writer.write()
        undo.push(done)
        raise
    undo.pop_all()


def _clusters_given_up(
    image: Image, before: list[BitmapEntry], entry: BitmapEntry | None
) -> list[int]:
    """Clusters of the old directory, and of a bitmap that goes; checked to be nobody else's."""
    if not before:
        return []
    bits, geometry = image.cluster_bits, image.geometry
    offset, length, _ = directory_range(image.file, image.header)
    found = [*range(offset >> bits, (offset >> bits) + geometry.clusters(length))]
    if entry is not None:
        first = entry.table_offset >> bits
        found += range(first, first + geometry.clusters(entry.table_size * 8))
        found += (place >> bits for place in offsets_of(read_table(image.file, entry)))
    others = metadata_clusters(image.metadata, with_bitmaps=False)
    if len({*found}) < len(found) or not others.isdisjoint(found):
        raise ImageFormatError("has a bitmap that overlaps other structures")
    return found
