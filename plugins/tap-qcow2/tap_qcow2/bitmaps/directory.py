"""Persistent bitmaps on disk: the directory, the tables, and the bits themselves.

A bitmap whose flag IN_USE is set was not saved by whoever wrote the disk, and says nothing. Of a
kind, or with flags, that are not known here, one is kept as it is, and shown as inconsistent.

Source: qcow2.rst, "Bitmaps extension", "Bitmap directory", "Bitmap table", "Bitmap data". The
limits are QEMU's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import attrs

from tap_qcow2.bitmaps.bits import either, set_runs
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tapcore import SECTOR_SHIFT, Bitmap, ImageFormatError, UsageError

if TYPE_CHECKING:
    from tap_qcow2.bitmaps.tracker import BitmapTracker as BitmapTracker
    from tap_qcow2.image import Image

EXTENSION: Final = struct.Struct(">IIQQ")
ENTRY: Final = struct.Struct(">QIIBBHI")

IN_USE: Final = 1 << 0
AUTO: Final = 1 << 1
EXTRA_DATA_COMPATIBLE: Final = 1 << 2
_KNOWN_FLAGS: Final = IN_USE | AUTO | EXTRA_DATA_COMPATIBLE

DIRTY_TRACKING: Final = 1
"""The one type of bitmap that is specified."""

ALL_ONES: Final = 1 << 0
"""A table entry without a cluster: all its bits are set. 0: none is."""

_TABLE_RESERVED: Final = 0xFF00_0000_0000_01FE
_GRANULARITY_BITS: Final = range(9, 32)
_MAX_NAME: Final = 1023
_MAX_TABLE_ENTRIES: Final = 4 << 20
"""Of all bitmaps together: as much as the largest L1 table."""

MAX_BITMAP_BYTES: Final = 512 << 20


@attrs.define
class BitmapEntry:
    """One entry of the directory.

    Attributes:
        place: offset of the entry in the image file, bytes.
        table_offset: of the bitmap's table, bytes.
        table_size: entries.
        flags: IN_USE, AUTO, EXTRA_DATA_COMPATIBLE.
        kind: its type.
        granularity_bits: log2 of the bytes that one bit stands for.
        extra_size: bytes of extra data.
        name: unique in the image.
    """

    place: int
    table_offset: int
    table_size: int
    flags: int
    kind: int
    granularity_bits: int
    extra_size: int
    name: str

    @property
    def auto(self) -> bool:
        """Whoever changes the disk has to record it in this bitmap."""
        return bool(self.flags & AUTO)

    @property
    def in_use(self) -> bool:
        """It was not saved."""
        return bool(self.flags & IN_USE)

    @property
    def known(self) -> bool:
        """Everything about it is known here, so that it may be read and changed."""
        return (
            self.kind == DIRTY_TRACKING
            and not self.flags & ~_KNOWN_FLAGS
            and self.granularity_bits in _GRANULARITY_BITS
            and (not self.extra_size or bool(self.flags & EXTRA_DATA_COMPATIBLE))
        )


# ---- the directory ---------------------------------------------------------------------------


def valid(image: Image) -> bool:
    """Whether the extension, where there is one, was kept up by all who wrote the image."""
    return bool(image.header.autoclear & layout.AUTOCLEAR_BITMAPS)


def disk_size(image: Image) -> int:
    """Bytes that bitmaps are about: the present disk, whatever snapshot is shown."""
    return image.header.size >> SECTOR_SHIFT << SECTOR_SHIFT


def directory_range(image: Image) -> tuple[int, int, int]:
    """The directory: offset and length in bytes, and entries; zeroes where there is none.

    Raises:
        ImageFormatError: the header extension cannot be true.
    """
    content = image.header.extension(layout.EXT_BITMAPS)
    if content is None:
        return 0, 0, 0
    if len(content) != EXTENSION.size:
        raise ImageFormatError("has a bitmaps header extension of a wrong length")
    count, reserved, length, offset = EXTENSION.unpack(content)
    if reserved or not 0 < count <= layout.MAX_BITMAPS:
        raise ImageFormatError(f"has an impossible bitmaps header extension ({count} bitmaps)")
    if not count * ENTRY.size <= length <= layout.MAX_BITMAP_DIRECTORY_BYTES:
        raise ImageFormatError(f"has a bitmap directory of an impossible size ({length} bytes)")
    _check_place(image, "its bitmap directory", offset, length)
    return offset, length, count


def _check_place(image: Image, what: str, offset: int, length: int) -> None:
    if not offset or offset & (image.geometry.cluster_size - 1):
        raise ImageFormatError(f"has {what} at an impossible offset ({offset:#x})")
    if offset + length > image.file.size:
        raise ImageFormatError(f"has {what} outside of the file")


def read_directory(image: Image) -> list[BitmapEntry]:
    """All entries; the tables lie inside the file.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    offset, length, count = directory_range(image)
    content = image.file.read_metadata(offset, length)
    found: list[BitmapEntry] = []
    at = entries = 0
    for _ in range(count):
        if at + ENTRY.size > length:
            raise ImageFormatError("has a bitmap directory that ends inside an entry")
        entry, size = _parse_entry(content, at, offset)
        at += size + -size % 8
        entries += entry.table_size
        if at > length or entries > _MAX_TABLE_ENTRIES:
            raise ImageFormatError("has a bitmap directory that is too large")
        _check_place(image, "a bitmap's table", entry.table_offset, entry.table_size * 8)
        found.append(entry)
    return found


def _parse_entry(content: bytes, at: int, offset: int) -> tuple[BitmapEntry, int]:
    """The entry at a position of the directory, and its size without padding (bytes)."""
    table_offset, table_size, flags, kind, bits, name_size, extra_size = ENTRY.unpack_from(
        content, at
    )
    if not 0 < name_size <= _MAX_NAME:
        raise ImageFormatError("has a bitmap with an impossible name")
    start = at + ENTRY.size + extra_size
    name = content[start : start + name_size].decode("utf-8", "surrogateescape")
    entry = BitmapEntry(offset + at, table_offset, table_size, flags, kind, bits, extra_size, name)
    return entry, ENTRY.size + extra_size + name_size


# ---- tables and bits -------------------------------------------------------------------------


def bits_of(entry: BitmapEntry, size: int) -> int:
    """Bits that a disk of `size` bytes takes."""
    return (size + (1 << entry.granularity_bits) - 1) >> entry.granularity_bits


def table_entries(image: Image, entry: BitmapEntry, size: int) -> int:
    """Table entries, each for a cluster of bits, that a disk of `size` bytes takes."""
    return max(image.geometry.clusters((bits_of(entry, size) + 7) >> 3), 1)


def fits(image: Image, entry: BitmapEntry) -> bool:
    """Its table is just as long as the disk demands."""
    return entry.table_size == table_entries(image, entry, disk_size(image))


def read_table(image: Image, entry: BitmapEntry) -> Words:
    """The entries of a bitmap's table, no two of which lead to one cluster.

    Raises:
        ImageFormatError: two do.
        OSError: as the system says.
    """
    table = _stored_table(image, entry)
    places = [word for word in table if word & layout.OFFSET_MASK]
    if len(set(places)) < len(places):
        raise ImageFormatError(f"has a bitmap '{entry.name}' with a cluster of bits that is shared")
    return table


def _stored_table(image: Image, entry: BitmapEntry) -> Words:
    return bigendian.from_bytes(image.file.read_metadata(entry.table_offset, entry.table_size * 8))


def read_bits(image: Image, word: int) -> bytes:
    """The cluster of bits that a table entry leads to.

    Raises:
        ImageFormatError: the entry is not possible.
        OSError: as the system says.
    """
    size = image.geometry.cluster_size
    offset = word & layout.OFFSET_MASK
    if word & _TABLE_RESERVED or (offset and word & ALL_ONES):
        raise ImageFormatError(f"has an impossible bitmap table entry ({word:#x})")
    if not offset:
        return b"\xff" * size if word & ALL_ONES else bytes(size)
    if offset & (size - 1) or offset >= image.file.size:
        raise ImageFormatError(f"has an impossible bitmap table entry ({word:#x})")
    if offset + size > image.file.size:  # zeroes would say that nothing has changed there
        raise ImageFormatError(f"has a bitmap that is cut by the end of the file ({word:#x})")
    return image.file.read_metadata(offset, size)


# ---- what the hooks ask ----------------------------------------------------------------------


def bitmaps(image: Image) -> list[Bitmap]:
    """The bitmaps of an image.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    try:
        entries = read_directory(image)
    except ImageFormatError:
        if valid(image):
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


def _readable(image: Image, entry: BitmapEntry) -> bool:
    if image.tracker is not None and image.tracker.holds(entry.name):
        return True
    return valid(image) and entry.known and not entry.in_use and fits(image, entry)


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
    entries = read_directory(image)
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
    size = disk_size(image)
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
    table = read_table(image, entry)
    for number in range(max(len(table), *(each + 1 for each in recorded), 0)):
        word = table[number] if number < len(table) else 0
        more = recorded.get(number)
        base = number * per_cluster
        if word == ALL_ONES:
            yield base, base + per_cluster
        elif word or more is not None:
            content = read_bits(image, word)
            for first, end in set_runs(content if more is None else either(content, more)):
                yield base + first, base + end


def bitmap_ranges_on_disk(image: Image) -> Iterator[tuple[int, int]]:
    """Every structure, as (offset, length) in the image file: not to be given out, or overwritten.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    if not valid(image):
        return
    yield directory_range(image)[:2]
    size = image.geometry.cluster_size
    for entry in read_directory(image):
        yield entry.table_offset, entry.table_size * 8
        start = end = 0
        for word in _stored_table(image, entry):
            offset = word & layout.OFFSET_MASK
            if not offset or offset >= image.file.size:
                continue  # told when it is read
            if offset != end:
                if end:
                    yield start, end - start
                start = offset
            end = offset + size
        if end:
            yield start, end - start


# ---- keeping them up -------------------------------------------------------------------------


def tracker_of(image: Image) -> BitmapTracker | None:
    """What records changes of an image opened for writing; None where no bitmap wants that.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    from tap_qcow2.bitmaps.tracker import BitmapTracker, wants_tracking

    if not valid(image) or not any(wants_tracking(image, each) for each in read_directory(image)):
        return None
    return BitmapTracker(image)


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
    from tap_qcow2.bitmaps.tracker import hold_for_resize

    if valid(image):
        hold_for_resize(image, old, new)
