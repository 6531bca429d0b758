"""The table of internal snapshots on disk.

Source: qcow2.rst, "Snapshots".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import attrs

from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.header import Header
from tapcore import ImageFile, ImageFormatError, Snapshot, printable

ENTRY: Final = struct.Struct(">QIHHIIQII")
ENTRY_L1_SIZE: Final = 8
"""Where in an entry its L1 table's size lies; entries are aligned: no write tears it."""

EXTRA: Final = struct.Struct(">QQQ")
NO_ICOUNT: Final = (1 << 64) - 1


@attrs.define
class SnapshotEntry:
    """One entry of the table.

    Attributes:
        l1_offset: of its copy of the L1 table, bytes.
        l1_size: entries.
        id: unique text, a number in practice.
        name: for people; need not be unique.
        date_sec: when it was made, seconds since 1970.
        date_nsec: and nanoseconds.
        vm_clock_nsec: how long the guest had run.
        vm_state_size: bytes of guest state that lie behind the disk's end.
        disk_size: bytes; None where it is not recorded (version 2).
        icount: executed instructions; None where there is none.
        extra_tail: extra data that is not known here, kept as it is.
        stored_bytes: how long the entry is in the table that it was read from, with padding.
    """

    l1_offset: int
    l1_size: int
    id: str
    name: str
    date_sec: int = 0
    date_nsec: int = 0
    vm_clock_nsec: int = 0
    vm_state_size: int = 0
    disk_size: int | None = None
    icount: int | None = None
    extra_tail: bytes = b""
    stored_bytes: int = 0

    def public(self) -> Snapshot:
        """As the core knows it."""
        return Snapshot(
            id=self.id,
            name=self.name,
            date_sec=self.date_sec,
            date_nsec=self.date_nsec,
            vm_state_size=self.vm_state_size,
            vm_clock_nsec=self.vm_clock_nsec,
            disk_size=self.disk_size,
            icount=self.icount,
        )

    def serialize(self) -> bytes:
        """The bytes on disk, padded to a multiple of 8."""
        extra = b""
        if self.disk_size is not None:
            icount = NO_ICOUNT if self.icount is None else self.icount
            extra = EXTRA.pack(self.vm_state_size, self.disk_size, icount) + self.extra_tail
        ident, name = _bytes(self.id), _bytes(self.name)
        packed = ENTRY.pack(
            self.l1_offset,
            self.l1_size,
            len(ident),
            len(name),
            self.date_sec,
            self.date_nsec,
            self.vm_clock_nsec,
            min(self.vm_state_size, (1 << 32) - 1),
            len(extra),
        )
        whole = packed + extra + ident + name
        return whole + bytes(-len(whole) % 8)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def table_bytes(snapshots: list[SnapshotEntry]) -> int:
    """Bytes that the table takes from which these were read."""
    return sum(snapshot.stored_bytes for snapshot in snapshots)


def read_snapshots(file: ImageFile, header: Header) -> list[SnapshotEntry]:
    """All entries of an image's table.

    Args:
        file: the image file.
        header: of it.

    Raises:
        ImageFormatError: the table cannot be true.
        OSError: as the system says.
    """
    return list(each_snapshot(file, header))


def each_snapshot(file: ImageFile, header: Header) -> Iterator[SnapshotEntry]:
    """The same one by one: there may be 65,536 of them.

    Raises:
        ImageFormatError, OSError: as `read_snapshots`.
    """
    at, budget = header.snapshots_offset, layout.MAX_SNAPSHOT_TABLE_BYTES
    for _ in range(header.nb_snapshots):
        entry = _read_entry(file, at)
        at += entry.stored_bytes
        budget -= entry.stored_bytes
        if budget < 0 or at > file.size + 8:
            raise ImageFormatError("has a snapshot table that ends outside of the file")
        yield entry


def _read_entry(file: ImageFile, at: int) -> SnapshotEntry:
    if at + ENTRY.size > file.size:
        raise ImageFormatError("has a snapshot table that ends outside of the file")
    (
        l1_offset,
        l1_size,
        id_length,
        name_length,
        date_sec,
        date_nsec,
        clock,
        vm_state_size,
        extra_length,
    ) = ENTRY.unpack(file.read_metadata(at, ENTRY.size))
    if extra_length > layout.MAX_SNAPSHOT_EXTRA:
        raise ImageFormatError(f"has a snapshot with too much extra data ({extra_length} bytes)")
    length = ENTRY.size + extra_length + id_length + name_length
    body = file.read_metadata(at + ENTRY.size, length - ENTRY.size)
    entry = SnapshotEntry(
        l1_offset=l1_offset,
        l1_size=l1_size,
        id=_text(body[extra_length : extra_length + id_length]),
        name=_text(body[extra_length + id_length :]),
        date_sec=date_sec,
        date_nsec=date_nsec,
        vm_clock_nsec=clock,
        vm_state_size=vm_state_size,
    )
    _take_extra(entry, body[:extra_length])
    entry.stored_bytes = length + -length % 8
    return entry


def _take_extra(entry: SnapshotEntry, extra: bytes) -> None:
    if len(extra) >= 8:
        (entry.vm_state_size,) = struct.unpack_from(">Q", extra)
    if len(extra) >= 16:
        (entry.disk_size,) = struct.unpack_from(">Q", extra, 8)
    if len(extra) >= EXTRA.size:
        (icount,) = struct.unpack_from(">Q", extra, 16)
        entry.icount = None if icount == NO_ICOUNT else icount
        entry.extra_tail = extra[EXTRA.size :]


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def needed_entries(header: Header, snapshot: SnapshotEntry) -> int:
    """Entries of a snapshot's L1 table that reading its disk, or a guest's state, can meet."""
    geometry = header.geometry
    disk = max(header.size, snapshot.disk_size or 0)
    needed = geometry.l1_entries(disk) + geometry.l1_entries(snapshot.vm_state_size)
    return min(needed, snapshot.l1_size, layout.MAX_L1_BYTES // 8)


def find_snapshot(snapshots: list[SnapshotEntry], wanted: str) -> SnapshotEntry:
    """By id, or else by name.

    Raises:
        ImageFormatError: there is none.
    """
    for attribute in ("id", "name"):
        for snapshot in snapshots:
            if getattr(snapshot, attribute) == wanted:
                return snapshot
    names = ", ".join(snapshot.name for snapshot in snapshots) or "none"
    raise ImageFormatError(f"has no snapshot '{wanted}' (there are: {names})")


def snapshot_l1(file: ImageFile, header: Header, snapshot: SnapshotEntry) -> bigendian.Words:
    """The entries of a snapshot's L1 table.

    Raises:
        ImageFormatError: it cannot be where the snapshot says.
        OSError: as the system says.
    """
    check_snapshot_l1(file, header, snapshot)
    return bigendian.read(file, snapshot.l1_offset, snapshot.l1_size)


def check_snapshot_l1(file: ImageFile, header: Header, snapshot: SnapshotEntry) -> None:
    """Raise ImageFormatError where a snapshot's L1 table cannot be where it says."""
    size = snapshot.l1_size * 8
    low = (1 << header.cluster_bits) - 1
    bad = snapshot.l1_offset & low or size > layout.MAX_L1_BYTES
    if bad or snapshot.l1_offset + size > file.size:
        name = printable(snapshot.name)
        raise ImageFormatError(f"has a snapshot '{name}' with an impossible L1 table")
