"""Persistent bitmaps on disk: the directory, the tables, and the bits themselves.

A bitmap whose flag IN_USE is set was not saved by whoever wrote the disk, and says nothing. Of a
kind, or with flags, that are not known here, one is kept as it is, and shown as inconsistent.

Source: qcow2.rst, "Bitmaps extension", "Bitmap directory", "Bitmap table", "Bitmap data". The
limits are QEMU's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import attrs

from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import BITS_ALL_SET, bits_possible, offset_of, offsets_of
from tap_qcow2.ondisk.header import Header
from tapcore import SECTOR_SHIFT, ImageFile, ImageFormatError

EXTENSION: Final = struct.Struct(">IIQQ")
ENTRY: Final = struct.Struct(">QIIBBHI")

IN_USE: Final = 1 << 0
AUTO: Final = 1 << 1
EXTRA_DATA_COMPATIBLE: Final = 1 << 2
_KNOWN_FLAGS: Final = IN_USE | AUTO | EXTRA_DATA_COMPATIBLE

DIRTY_TRACKING: Final = 1
"""The one type of bitmap that is specified."""

GRANULARITY_BITS: Final = range(9, 32)
MAX_NAME: Final = 1023
MAX_TABLE_ENTRIES: Final = 4 << 20
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
            and self.granularity_bits in GRANULARITY_BITS
            and (not self.extra_size or bool(self.flags & EXTRA_DATA_COMPATIBLE))
        )


# ---- the directory ---------------------------------------------------------------------------


def valid(header: Header) -> bool:
    """Whether the extension, where there is one, was kept up by all who wrote the image."""
    return bool(header.autoclear & layout.AUTOCLEAR_BITMAPS)


def disk_size(header: Header) -> int:
    """Bytes that bitmaps are about: the present disk, whatever snapshot is shown."""
    return header.size >> SECTOR_SHIFT << SECTOR_SHIFT


def directory_range(file: ImageFile, header: Header) -> tuple[int, int, int]:
    """The directory: offset and length in bytes, and entries; zeroes where there is none.

    Args:
        file: the image file.
        header: of it.

    Raises:
        ImageFormatError: the header extension cannot be true.
    """
    content = header.extension(layout.EXT_BITMAPS)
    if content is None:
        return 0, 0, 0
    if len(content) != EXTENSION.size:
        raise ImageFormatError("has a bitmaps header extension of a wrong length")
    count, reserved, length, offset = EXTENSION.unpack(content)
    if reserved or not 0 < count <= layout.MAX_BITMAPS:
        raise ImageFormatError(f"has an impossible bitmaps header extension ({count} bitmaps)")
    if not count * ENTRY.size <= length <= layout.MAX_BITMAP_DIRECTORY_BYTES:
        raise ImageFormatError(f"has a bitmap directory of an impossible size ({length} bytes)")
    _check_place(file, header, "its bitmap directory", offset, length)
    return offset, length, count


def _check_place(file: ImageFile, header: Header, what: str, offset: int, length: int) -> None:
    if not offset or offset & ((1 << header.cluster_bits) - 1):
        raise ImageFormatError(f"has {what} at an impossible offset ({offset:#x})")
    if offset + length > file.size:
        raise ImageFormatError(f"has {what} outside of the file")


def read_directory(file: ImageFile, header: Header) -> list[BitmapEntry]:
    """All entries; the tables lie inside the file.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    offset, length, count = directory_range(file, header)
    content = file.read_metadata(offset, length)
    found: list[BitmapEntry] = []
    at = entries = 0
    for _ in range(count):
        if at + ENTRY.size > length:
            raise ImageFormatError("has a bitmap directory that ends inside an entry")
        entry, size = _parse_entry(content, at, offset)
        at += size + -size % 8
        entries += entry.table_size
        if at > length or entries > MAX_TABLE_ENTRIES:
            raise ImageFormatError("has a bitmap directory that is too large")
        place = entry.table_offset, entry.table_size * 8
        _check_place(file, header, "a bitmap's table", *place)
        found.append(entry)
    return found


def _parse_entry(content: bytes, at: int, offset: int) -> tuple[BitmapEntry, int]:
    """The entry at a position of the directory, and its size without padding (bytes)."""
    table_offset, table_size, flags, kind, bits, name_size, extra_size = ENTRY.unpack_from(
        content, at
    )
    if not 0 < name_size <= MAX_NAME:
        raise ImageFormatError("has a bitmap with an impossible name")
    start = at + ENTRY.size + extra_size
    name = content[start : start + name_size].decode("utf-8", "surrogateescape")
    entry = BitmapEntry(offset + at, table_offset, table_size, flags, kind, bits, extra_size, name)
    return entry, ENTRY.size + extra_size + name_size


def packed_entry(entry: BitmapEntry, extra: bytes = b"") -> bytes:
    """An entry as it lies in the directory, with its padding.

    Args:
        entry: its `place` does not count, and `extra_size` is that of `extra`.
        extra: data of the entry's own, which is kept as it is.
    """
    name = entry.name.encode("utf-8", "surrogateescape")
    head = ENTRY.pack(
        entry.table_offset,
        entry.table_size,
        entry.flags,
        entry.kind,
        entry.granularity_bits,
        len(name),
        len(extra),
    )
    packed = head + extra + name
    return packed + bytes(-len(packed) % 8)


def extra_data(file: ImageFile, entry: BitmapEntry) -> bytes:
    """What an entry has of its own, besides what is specified."""
    return file.read_metadata(entry.place + ENTRY.size, entry.extra_size)


# ---- tables and bits -------------------------------------------------------------------------


def bits_of(entry: BitmapEntry, size: int) -> int:
    """Bits that a disk of `size` bytes takes."""
    return (size + (1 << entry.granularity_bits) - 1) >> entry.granularity_bits


def table_entries(header: Header, entry: BitmapEntry, size: int) -> int:
    """Table entries, each for a cluster of bits, that a disk of `size` bytes takes."""
    return max(header.geometry.clusters((bits_of(entry, size) + 7) >> 3), 1)


def fits(header: Header, entry: BitmapEntry) -> bool:
    """Its table is just as long as the disk demands."""
    return entry.table_size == table_entries(header, entry, disk_size(header))


def read_table(file: ImageFile, entry: BitmapEntry) -> Words:
    """The entries of a bitmap's table, no two of which lead to one cluster.

    Raises:
        ImageFormatError: two do.
        OSError: as the system says.
    """
    table = _stored_table(file, entry)
    places = offsets_of(table)
    if len(set(places)) < len(places):
        raise ImageFormatError(f"has a bitmap '{entry.name}' with a cluster of bits that is shared")
    return table


def _stored_table(file: ImageFile, entry: BitmapEntry) -> Words:
    return bigendian.from_bytes(file.read_metadata(entry.table_offset, entry.table_size * 8))


def read_bits(file: ImageFile, header: Header, word: int) -> bytes:
    """The cluster of bits that a table entry leads to.

    Args:
        file: the image file.
        header: of it.
        word: the table entry.

    Raises:
        ImageFormatError: the entry is not possible.
        OSError: as the system says.
    """
    size = 1 << header.cluster_bits
    offset = offset_of(word)
    if not bits_possible(word):
        raise ImageFormatError(f"has an impossible bitmap table entry ({word:#x})")
    if not offset:
        return b"\xff" * size if word == BITS_ALL_SET else bytes(size)
    if offset & (size - 1) or offset >= file.size:
        raise ImageFormatError(f"has an impossible bitmap table entry ({word:#x})")
    if offset + size > file.size:  # zeroes would say that nothing has changed there
        raise ImageFormatError(f"has a bitmap that is cut by the end of the file ({word:#x})")
    return file.read_metadata(offset, size)


def write_flags(file: ImageFile, entry: BitmapEntry, flags: int) -> None:
    """Change a bitmap's flags in the directory: four bytes, which lie in one sector."""
    file.write_metadata(entry.place + 12, flags.to_bytes(4, "big"))


def ranges_on_disk(file: ImageFile, header: Header) -> Iterator[tuple[int, int]]:
    """Every structure, as (offset, length) in the image file: not to be given out, or overwritten.

    Raises:
        ImageFormatError: the directory cannot be true.
        OSError: as the system says.
    """
    if not valid(header):
        return
    yield directory_range(file, header)[:2]
    size = 1 << header.cluster_bits
    for entry in read_directory(file, header):
        yield entry.table_offset, entry.table_size * 8
        start = end = 0
        for offset in offsets_of(_stored_table(file, entry)):
            if offset >= file.size:
                continue  # told when it is read
            if offset != end:
                if end:
                    yield start, end - start
                start = offset
            end = offset + size
        if end:
            yield start, end - start
