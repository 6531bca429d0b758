"""Everything that refers to host clusters, found and counted: from the header down to the data.

An L2 table is read once, however many L1 tables lead to it, and what it says counts as often. So
the work is bounded by what the file really holds: tables in holes of it are not read, and an image
in which too many tables overlap is given up.

Source: qcow2.rst; the findings are those of `qemu-img check`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import attrs

from tap_qcow2.check.entrycounter import EntryCounter, L2Uses
from tap_qcow2.check.referencecounts import Counts
from tap_qcow2.check.report import Report
from tap_qcow2.data.unopened import UnopenedFile
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.entries import bits_possible, l1_reserved, offset_of
from tap_qcow2.ondisk.snapshottable import (
    SnapshotEntry,
    needed_entries,
    read_snapshots,
    table_bytes,
)
from tap_qcow2.ondisk.verdicts import Rules
from tapcore import TD_RDONLY, ImageFormatError, TapError, open_named_file

if TYPE_CHECKING:
    from tap_qcow2.image import Image

_MAX_CRYPTO_BYTES: Final = 64 << 20
_MOST_OVERLAPPING: Final = 64 << 20
"""Bytes of tables to look at that lie, all or in part, where another one was found already."""

_FREE_TABLES: Final = 1 << 18
"""L2 tables to remember that lie in holes of the file."""


class GivenUpError(Exception):
    """The tables of an image overlap so much that a look at all of it would take unbounded time."""


@attrs.define
class L1Table:
    """An L1 table: of the disk as it is, or of snapshots.

    Attributes:
        name: for messages.
        offset: bytes.
        size: entries.
        times: how many refer to it.
        active: it is the one of the disk as it is.
    """

    name: str
    offset: int
    size: int
    times: int = 1
    active: bool = False


def data_size(image: Image) -> int | None:
    """Length of the data file (bytes); None where there is none.

    Raises:
        TapError: it cannot be opened.
    """
    if not image.header.has_data_file:
        return None
    if not isinstance(image.data, UnopenedFile):
        return image.data.look_again()
    file = open_named_file(image.dd, image.header.data_file, role="data file", flags=TD_RDONLY)
    size = file.size
    file.close()
    return size


def _data_size(image: Image, report: Report) -> int | None:
    """As `data_size`; None, and reported, where it cannot be looked at."""
    try:
        return data_size(image)
    except TapError as exc:
        report.failed(f"the data file was not looked at: {exc.message}")
        return None


class Walk:
    """The references of one image.

    Args:
        image: open; its file is read, not what is in memory.
        report: gets what is found.

    Attributes:
        rules: of the image.
        counts: references, by host cluster.
        structures: those of them that are not data, L2 tables or refcount structures.
        l1_tables: the active one first; those that cannot be read are left out.
        l2_tables: by their offset in the file (bytes).
        snapshots: the table of snapshots.
        l1_damaged: an L1 entry should be another.
        dangling: clusters that entries lead to which stay though the file does not reach so far.
        l2_damaged: offsets of the L2 tables of which an entry should be another.
        bitmaps_damaged: the directory, or a table of a bitmap, cannot be true.
        hidden: there are tables that cannot be followed: what they refer to is not counted.
        snapshots_incomplete: entries of the snapshot table lack what version 3 demands.
        suspicious: offsets of active L2 tables of which not every entry is flagged as COPIED, or
            that are damaged: the flags of others are right where nothing is shared.
        crowded: clusters of structures that something else leads to as an L2 table or data, and of
            L2 tables that are data too: how often as data. What refcount structures share is not
            among them.
    """

    def __init__(self, image: Image, report: Report) -> None:
        self._image = image
        self._file = image.file
        self._report = report
        self._bits = image.cluster_bits
        self._size = image.geometry.cluster_size
        self._zeroes = bytes(self._size)
        self._overlapping = 0
        self.rules = Rules.of(image.header, image.file.size, _data_size(image, report))
        self.counts = Counts(image.refcounts.per_block_bits)
        self.structures = Counts(image.refcounts.per_block_bits)
        self.l1_tables: list[L1Table] = []
        self.l2_tables: dict[int, L2Uses] = {}
        self.snapshots: list[SnapshotEntry] = []
        self.l1_damaged = False
        self._entries = EntryCounter(self.rules, self.counts, report)
        self.l2_damaged = self._entries.damaged
        self.dangling = self._entries.dangling
        self.bitmaps_damaged = False
        self.hidden = False
        self.snapshots_incomplete = False
        self.suspicious = self._entries.suspicious
        self.crowded: dict[int, int] = {}

    def run(self) -> None:
        """Walk through it all.

        Raises:
            OSError: a table cannot be read.
            GivenUpError, TooFarApartError: see there.
            ImageFormatError: the snapshot table cannot be read.
        """
        header = self._image.header
        self._structure("header", 0, self._size)
        if header.l1_size and header.l1_table_offset >= self._file.size:
            self._report.failed("the L1 table lies outside of the file")
        self.l1_tables.append(
            L1Table("L1 table", header.l1_table_offset, header.l1_size, active=True)
        )
        self._snapshot_table()
        for table in self.l1_tables:
            self._walk_l1(table)
        for offset in sorted(self.l2_tables):
            self._walk_l2(offset, self.l2_tables[offset])
        self._crypto_header()
        self._bitmaps()
        self._find_crowded()
        self._tell_missing()

    def _tell_missing(self) -> None:
        count = self._entries.missing
        if not count:
            return
        many = "1 cluster" if count == 1 else f"{count} clusters"
        file = "data file" if self.rules.data_file else "file"
        self._report.say(f"the content of {many} is lost, past the end of the {file}")

    def _find_crowded(self) -> None:
        structures, counts = self.structures, self.counts
        for number, page in structures.pages.items():
            if page == counts.pages[number]:
                continue
            base = number << counts.page_bits
            for at, (here, whole) in enumerate(zip(page, counts.pages[number], strict=True)):
                if here and here != whole:
                    self.crowded[base + at] = whole - here
        for offset, uses in self.l2_tables.items():
            cluster = offset >> self._bits
            if offset & (self._size - 1) or cluster >= self.rules.clusters:
                continue  # its L1 entry is damaged
            data = counts.get(cluster) - structures.get(cluster) - uses.times
            if data or cluster in self.crowded:
                self.crowded[cluster] = data

    # ---- reading ----------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes | None:
        """A table; None where there is nothing but a hole, or that lies behind the file's end.

        Raises:
            OSError: as the system says.
        """
        if not self._holds_data(offset, length):
            return None
        return self._file.read_metadata(offset, length)

    def entries(self, table: L1Table) -> Iterator[bigendian.Words]:
        """Of an L1 table, as many as lie inside the file, in parts; not those in a hole.

        Raises:
            OSError: as the system says.
        """
        inside = table.size if self._holds_data(table.offset, table.size * 8) else 0
        for _, content in bigendian.parts(self._file, table.offset, inside):
            yield bigendian.from_bytes(content)

    def _holds_data(self, offset: int, length: int) -> bool:
        end = min(offset + length, self._file.size)
        return offset < end and any(data for _, _, data in self._file.runs(offset, end - offset))

    def overlaps(self, length: int) -> None:
        """A table of so many bytes is to be looked at that overlaps others.

        Raises:
            GivenUpError: that makes too much.
        """
        self._overlapping += length
        if self._overlapping > _MOST_OVERLAPPING:
            raise GivenUpError

    # ---- structures -------------------------------------------------------------------------

    def _structure(self, name: str, offset: int, length: int, times: int = 1) -> bool:
        """Count what is not data."""
        if not length:
            return True
        if not self.rules.inside(offset, length):
            message = f"{name} ({length} bytes at {offset:#x}) lies outside of the file"
            self._report.corrupt(message, times)
            return False
        first = offset >> self._bits
        count = ((offset + length - 1) >> self._bits) - first + 1
        self.counts.add(first, count, times)
        self.structures.add(first, count, times)
        return True

    def _snapshot_table(self) -> None:
        header = self._image.header
        if not header.nb_snapshots:
            return
        if header.has_data_file:
            self._report.corrupt("it has snapshots, and a data file")
        self.snapshots = read_snapshots(self._file, header)
        tables: dict[tuple[int, int], L1Table] = {}
        for number, snapshot in enumerate(self.snapshots):
            name = f"snapshot {number} ('{snapshot.name[:60]}')"
            if header.version >= 3 and snapshot.disk_size is None:
                self._report.corrupt(f"{name} has an incomplete entry in the snapshot table")
                self.snapshots_incomplete = True
            if snapshot.l1_offset & (self._size - 1):
                self._report.corrupt(f"{name} has an L1 table that is not at a cluster's boundary")
                self.hidden = True
            elif snapshot.l1_size * 8 > layout.MAX_L1_BYTES:
                self._report.corrupt(f"{name} has an L1 table that is too large")
                self.hidden = True
            else:
                place = snapshot.l1_offset, snapshot.l1_size
                needed = needed_entries(header, snapshot) * 8
                self.hidden |= not self.rules.inside(snapshot.l1_offset, needed)
                if place in tables:
                    tables[place].times += 1
                else:
                    tables[place] = L1Table(f"L1 table of {name}", *place)
        self.l1_tables.extend(tables.values())
        self._structure("snapshot table", header.snapshots_offset, table_bytes(self.snapshots))

    def _crypto_header(self) -> None:
        place = self._image.header.crypto
        if place is None:
            return
        if place[0] & (self._size - 1) or place[1] > _MAX_CRYPTO_BYTES:
            self._report.corrupt(f"encryption header ({place[1]} bytes at {place[0]:#x}) cannot be")
        else:
            self._structure("encryption header", *place)

    def _bitmaps(self) -> None:
        from tap_qcow2.ondisk.bitmapdirectory import (
            directory_range,
            read_directory,
            read_table,
            valid,
        )

        image = self._image
        file, header = image.file, image.header
        if not valid(header):
            return
        try:
            offset, length, _ = directory_range(file, header)
            self._structure("bitmap directory", offset, length)
            entries = read_directory(file, header)
        except ImageFormatError as exc:
            self._report.corrupt(f"it {exc.message}")
            self.bitmaps_damaged = True
            return
        for entry in entries:
            name = f"bitmap '{entry.name[:60]}'"
            length = entry.table_size * 8
            if not self._structure(f"table of {name}", entry.table_offset, length):
                self.bitmaps_damaged = True
                continue
            for word in filter(None, read_table(file, entry)):
                self._bitmap_cluster(name, word)

    def _bitmap_cluster(self, name: str, word: int) -> None:
        offset = offset_of(word)
        if not bits_possible(word) or offset & (self._size - 1):
            self._report.corrupt(f"{name} has an impossible table entry ({word:#x})")
            self.bitmaps_damaged = True
        elif offset and not self._structure(name, offset, self._size):
            self.bitmaps_damaged = True

    # ---- L1 ---------------------------------------------------------------------------------

    def _walk_l1(self, table: L1Table) -> None:
        length = table.size * 8
        if self._lies_on_another(table.offset, length):
            self.overlaps(length)
        self._structure(table.name, table.offset, length, table.times)
        for part in self.entries(table):
            for entry, count in Counter(filter(None, part)).items():
                self._l1_entry(table, entry, count * table.times)

    def _lies_on_another(self, offset: int, length: int) -> bool:
        end = min(offset + length, self._file.size)
        clusters = range(offset >> self._bits, (end + self._size - 1) >> self._bits)
        return any(self.structures.get(cluster) for cluster in clusters)

    def _l1_entry(self, table: L1Table, entry: int, times: int) -> None:
        report = self._report
        if l1_reserved(entry):
            report.corrupt(f"{table.name} has an entry with reserved bits ({entry:#x})", times)
            self.l1_damaged = True
        offset = offset_of(entry)
        if not self.rules.inside(offset, self._size):
            message = f"{table.name} has an entry that leads outside of the file ({entry:#x})"
            report.corrupt(message, times)
            self.l1_damaged = True
        else:
            last = (offset + self._size - 1) >> self._bits
            self.counts.add(offset >> self._bits, last - (offset >> self._bits) + 1, times)
        if offset & (self._size - 1):
            message = f"{table.name} has an entry that is not at a cluster's boundary ({entry:#x})"
            report.corrupt(message, times)
            self.l1_damaged = True
        if not offset:
            report.say(f"{table.name} has an entry that leads to the header ({entry:#x})")
            self.l1_damaged = True
        uses = self.l2_tables.get(offset)
        if uses is None:
            if len(self.l2_tables) >= _FREE_TABLES and not self._holds_data(offset, self._size):
                return
            uses = self.l2_tables[offset] = L2Uses()
            if offset < self._file.size < offset + self._size:
                report.corrupt(f"the L2 table at {offset:#x} is cut by the end of the file")
        uses.times += times
        if table.active:
            uses.active += times

    def _walk_l2(self, offset: int, uses: L2Uses) -> None:
        content = self.read(offset, self._size)
        if content is None or content == self._zeroes:
            return
        if offset & (self._size - 1):
            self.overlaps(self._size)
        self._entries.count(offset, bigendian.from_bytes(content), uses)
