"""Whether a repair keeps what could be read: the tables before it beside those after it.

Of each cluster of the disk and of its snapshots, what the tables say now must read as what they
said before, unless that was nothing: an entry that is not possible. Data that lies past the end of
the file counts as zeroes, as QEMU reads it. Only what differs, or leads to what was written, is
looked at closely.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from tap_qcow2.check.walk import data_size
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import (
    COMPRESSED,
    DATA,
    ZERO,
    compressed,
    offset_of,
    subcluster_kind,
)
from tap_qcow2.ondisk.headerparser import parse_header
from tap_qcow2.ondisk.snapshottable import SnapshotEntry, needed_entries, read_snapshots
from tapcore import ImageFormatError, TapError

if TYPE_CHECKING:
    from tap_qcow2.check.rehearsal import Ranges
    from tap_qcow2.image import Image

Piece: TypeAlias = "bytes | int | tuple[object, ...] | None"
"""What a cluster, or a subcluster, reads as: its bytes, `_HOLE`, or what else tells it from others;
None: it cannot be read."""

_HOLE: Final = -1
_PART: Final = 1 << 14
"""L1 entries that are looked at at once."""

_KEPT_FIELDS: Final = (
    "version", "backing_file", "backing_format", "cluster_bits", "size", "crypt_method",
    "refcount_order", "compression_type", "data_file", "data_file_raw", "crypto",
)  # fmt: skip


class HarmError(Exception):
    """A repair would make an image worse; the text says in which way."""


class _ChangeError(HarmError):
    """It would change what can be read."""

    def __init__(self, what: str) -> None:
        super().__init__(f"that would change {what}")


def check_kept(before: Image, after: Image, written: Ranges) -> None:
    """Raise HarmError where content that could be read is not what it was.

    Args:
        before: the image as it is.
        after: as it would be.
        written: where the two files differ, or may.
    """
    _check_header(before, after)
    pairs = _l1_tables(before, after)
    check = _Comparison(before, after, written)
    for name, old, new, count in pairs:
        check.compare(name, old, new, count)


def _check_header(before: Image, after: Image) -> None:
    from tap_qcow2.ondisk.headerreading import read_head

    file = after.file
    try:
        now = parse_header(read_head(file), file_size=file.size, to_check=True)
    except TapError as exc:
        raise _ChangeError(f"its header: the image {exc.message}") from exc
    for name in _KEPT_FIELDS:
        if getattr(now, name) != getattr(before.header, name):
            raise _ChangeError(f"the header's {name}")
    if now.l1_size != after.header.l1_size or now.l1_table_offset != before.header.l1_table_offset:
        raise _ChangeError("where the header says that the L1 table lies")


def _l1_tables(before: Image, after: Image) -> list[tuple[str, int, int, int]]:
    """Pairs of L1 tables: name, offset before and after, and the entries that something reads."""
    old, new = before.header, after.header
    count = min(old.l1_size, before.geometry.l1_entries(old.size))
    if count > new.l1_size:
        raise _ChangeError("the size of the L1 table")
    found = [("the disk", old.l1_table_offset, new.l1_table_offset, count)]
    one, two = read_snapshots(before.file, old), read_snapshots(after.file, new)
    if len(one) != len(two):
        raise _ChangeError("the table of snapshots")
    for a, b in zip(one, two, strict=True):
        if _identity(a) != _identity(b) or a.disk_size not in (None, b.disk_size):
            raise _ChangeError(f"snapshot '{a.name[:60]}' in the table")
        count = needed_entries(before.header, a)
        if count > b.l1_size:
            raise _ChangeError(f"the size of the L1 table of snapshot '{a.name[:60]}'")
        if not a.l1_offset & (before.geometry.cluster_size - 1):
            found.append((f"snapshot '{a.name[:60]}'", a.l1_offset, b.l1_offset, count))
    return found


def _identity(entry: SnapshotEntry) -> tuple[object, ...]:
    skip = ("l1_offset", "l1_size", "disk_size", "stored_bytes")
    return tuple(getattr(entry, f.name) for f in attrs.fields(SnapshotEntry) if f.name not in skip)


class _Comparison:
    """Two images, table by table."""

    def __init__(self, before: Image, after: Image, written: Ranges) -> None:
        self._before = _Side(before)
        self._after = _Side(after)
        self._written = written
        self._geometry = before.geometry
        self._size = before.geometry.cluster_size
        self._seen: set[tuple[int, int]] = set()

    def compare(self, name: str, old: int, new: int, count: int) -> None:
        """Two L1 tables at their offsets, of so many entries."""
        for first in range(0, count, _PART):
            length = min(_PART, count - first) * 8
            a = bigendian.from_bytes(self._before.file.read_metadata(old + first * 8, length))
            b = bigendian.from_bytes(self._after.file.read_metadata(new + first * 8, length))
            for index, (one, two) in enumerate(zip(a, b, strict=True), first):
                if offset_of(one):
                    self._compare_l2(name, index, one, two)
                elif offset_of(two):
                    raise _ChangeError(f"{name} from {self._place(index, 0):#x} on")

    def _place(self, index: int, number: int) -> int:
        """Of a cluster of the disk, by the numbers of its L1 and L2 entries (bytes)."""
        return ((index << self._geometry.l2_bits) + number) << self._geometry.cluster_bits

    def _compare_l2(self, name: str, index: int, one: int, two: int) -> None:
        old, new = offset_of(one), offset_of(two)
        if (old, new) in self._seen or not self._before.readable(old):
            return
        self._seen.add((old, new))
        a = self._before.table(old)
        b = self._after.table(new) if new else bigendian.zeroes(len(a))
        if a == b and not self._leads_to_written(a):
            return
        step = self._geometry.words
        for at in range(0, len(a), step):
            if self._differs(a, b, at):
                raise _ChangeError(f"{name} at {self._place(index, at // step):#x}")

    def _differs(self, a: Words, b: Words, at: int) -> bool:
        step = self._geometry.words
        if a[at : at + step] == b[at : at + step] and not self._leads_to_written(a[at : at + step]):
            return False
        was = self._before.pieces(a, at)
        if was is None:
            return False
        now = self._after.pieces(b, at)
        return now is None or any(x is not None and x != y for x, y in zip(was, now, strict=True))

    def _leads_to_written(self, entries: Words) -> bool:
        """Whether what some entries of an L2 table lead to was written."""
        if self._before.data_elsewhere:
            return False
        ranges = self._before.decoder.ranges(entries)
        return any(self._written.touch(start, end) for start, end in ranges)


class _Side:
    """What the tables of one of the two images say."""

    def __init__(self, image: Image) -> None:
        self._header = image.header
        self.file = image.file
        self.decoder = image.metadata.decoder
        self._geometry = image.geometry
        self._size = image.geometry.cluster_size
        self._nothing = 0 if not image.header.backing_file else _HOLE
        self.data_elsewhere = image.header.has_data_file
        self._data_size = data_size(image) if self.data_elsewhere else None

    def readable(self, offset: int) -> bool:
        """An L2 table can lie there."""
        return not offset & (self._size - 1) and offset < self.file.size

    def table(self, offset: int) -> Words:
        """The words of an L2 table (its offset in bytes)."""
        return bigendian.from_bytes(self.file.read_metadata(offset, self._size))

    def pieces(self, table: Words, at: int) -> list[Piece] | None:
        """What the entry at a place of a table reads as, by subclusters where there are any."""
        try:
            if self._geometry.extended:
                return list(self._subclusters(table[at], table[at + 1]))
            return [self._cluster(table[at])]
        except ImageFormatError:
            return None

    def _cluster(self, entry: int) -> Piece:
        kind, where = self.decoder.decode(entry)
        if kind == COMPRESSED:
            return self._packed(entry)
        if kind == DATA:
            return self._data(where, self._size)
        return 0 if kind == ZERO else self._nothing

    def _packed(self, entry: int) -> Piece:
        offset, length = self.decoder.compressed_range(entry)
        if self.data_elsewhere or offset >= self.file.size:
            return None
        return "packed", self.file.read_metadata(offset, length).rstrip(b"\0")

    def _data(self, host: int, length: int) -> Piece:
        if self.data_elsewhere:
            size = self._data_size
            return 0 if size is not None and host >= size else ("elsewhere", host)
        content = self.file.read_metadata(host, length)
        if self._header.crypt_method == layout.CRYPT_LUKS:
            return host, content  # how it is decrypted depends on where it lies
        return content if any(content) else 0

    def _subclusters(self, entry: int, bitmap: int) -> Iterator[Piece]:
        self.decoder.check_extended(entry, bitmap)
        if compressed(entry):
            packed = self._packed(entry)
            yield from [packed] * layout.SUBCLUSTERS
            return
        host, unit = offset_of(entry), self._geometry.unit
        for number in range(layout.SUBCLUSTERS):
            kind = subcluster_kind(bitmap, number)
            if kind == DATA:
                yield self._data(host + number * unit, unit)
            else:
                yield 0 if kind == ZERO else self._nothing
