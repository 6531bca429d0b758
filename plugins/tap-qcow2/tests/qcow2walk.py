"""An independent look at a qcow2 file's metadata: simple, slow, and without a line of the driver's.

`walk` finds everything that refers to host clusters and compares that with the refcounts, so that
thousands of crashed images can be judged; `qemu-img check` looks at a sample of them. The places
of all structures that it comes across are where the tests with damaged images strike.

Source: QEMU, docs/interop/qcow2.rst.
"""

import struct
from collections import Counter
from collections.abc import Iterator

import attrs

HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
EXTRA = struct.Struct(">QQQII")
SNAPSHOT = struct.Struct(">QIHHIIQII")
BITMAP = struct.Struct(">QIIBBHI")
COPIED, COMPRESSED = 1 << 63, 1 << 62
OFFSET = 0x00FF_FFFF_FFFF_FE00
L1_RESERVED = 0x7F00_0000_0000_01FF
L2_RESERVED = 0x3F00_0000_0000_01FE
DATA_FILE, EXTENDED_L2 = 1 << 2, 1 << 4
BITMAPS_EXTENSION, CRYPTO_EXTENSION = 0x23852875, 0x0537BE77


@attrs.define
class Place:
    """Where something lies in the file: its name, offset and length in bytes."""

    name: str
    offset: int
    length: int


@attrs.define(slots=False)
class Walk:
    """What was found.

    Attributes:
        problems: each is corruption.
        copied_wrong: flags that do not fit the refcounts, though they do no harm by themselves.
        leaks: clusters that are counted more often than they are referred to.
        places: of all metadata.
        extensions: of the header: (type, offset of the content, length).
        mapped: guest cluster: host offset, of plain data of the active disk.
    """

    content: bytes
    problems: list[str] = attrs.field(factory=list)
    leaks: int = 0
    places: list[Place] = attrs.field(factory=list)
    extensions: list[tuple[int, int, int]] = attrs.field(factory=list)
    mapped: dict[int, int] = attrs.field(factory=dict)
    _counts: Counter[int] = attrs.field(factory=Counter)
    bits: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        (
            magic,
            self.version,
            self.backing_offset,
            self.backing_size,
            self.bits,
            self.size,
            self.crypt,
            self.l1_size,
            self.l1_offset,
            self.reftable_offset,
            self.reftable_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        ) = HEADER.unpack_from(self.content)
        assert magic == b"QFI\xfb"
        self.incompatible = self.compatible = self.autoclear = 0
        self.order, self.header_length = 4, HEADER.size
        if self.version >= 3:
            (
                self.incompatible,
                self.compatible,
                self.autoclear,
                self.order,
                self.header_length,
            ) = EXTRA.unpack_from(self.content, HEADER.size)
        self.cluster = 1 << self.bits
        self.words = 2 if self.incompatible & EXTENDED_L2 else 1
        self.has_data_file = bool(self.incompatible & DATA_FILE)
        self.copied_wrong: list[str] = []

    # ---- references -------------------------------------------------------------------------

    def table(self, offset: int, count: int) -> tuple[int, ...]:
        """Big-endian 64-bit words; zeroes past the end of the file."""
        part = self.content[offset : offset + count * 8].ljust(count * 8, b"\0")
        return struct.unpack(f">{count}Q", part)

    def refer(self, name: str, offset: int, length: int, *, place: bool = True) -> bool:
        """Something lies there, and takes whole clusters."""
        if offset % self.cluster or offset + length > self.end:
            self.problems.append(f"{name} at {offset:#x}+{length:#x} is unaligned or outside")
            return False
        self.count(offset, length)
        if place and length:
            self.places.append(Place(name, offset, length))
        return True

    def count(self, offset: int, length: int) -> None:
        """Count a reference to every cluster that a range touches."""
        if length:
            for number in range(offset >> self.bits, (offset + length - 1 >> self.bits) + 1):
                self._counts[number] += 1

    @property
    def end(self) -> int:
        """Of the file, in whole clusters (bytes)."""
        return -(-len(self.content) // self.cluster) * self.cluster

    def references(self) -> None:
        """Everything that refers to clusters."""
        self.refer("header", 0, self.header_length)
        self._extensions()
        self.refer("refcount table", self.reftable_offset, self.reftable_clusters << self.bits)
        if self.refer("L1 table", self.l1_offset, self.l1_size * 8):
            self._level1("", self.l1_offset, self.l1_size)
        self._snapshots()

    def _extensions(self) -> None:
        at = self.header_length
        while at + 8 <= min(self.cluster, len(self.content)):
            kind, length = struct.unpack_from(">II", self.content, at)
            if not kind:
                return
            self.extensions.append((kind, at + 8, length))
            if kind == CRYPTO_EXTENSION:
                self.refer("encryption header", *struct.unpack_from(">QQ", self.content, at + 8))
            if kind == BITMAPS_EXTENSION and self.autoclear & 1:
                self._bitmaps(*struct.unpack_from(">I4xQQ", self.content, at + 8))
            at += 8 + length + -length % 8

    def _bitmaps(self, count: int, length: int, offset: int) -> None:
        if not self.refer("bitmap directory", offset, length):
            return
        for _ in range(count):
            table, entries, _, _, _, name, extra = BITMAP.unpack_from(self.content, offset)
            if self.refer("bitmap table", table, entries * 8):
                for entry in self.table(table, entries):
                    if entry & OFFSET:
                        self.refer("bitmap", entry & OFFSET, self.cluster)
            offset += BITMAP.size + name + extra
            offset += -offset % 8

    def _snapshots(self) -> None:
        at = self.snapshots_offset
        for number in range(self.nb_snapshots):
            l1, l1_size, id_size, name_size, *_, extra = SNAPSHOT.unpack_from(self.content, at)
            at += SNAPSHOT.size + extra + id_size + name_size
            at += -at % 8
            name = f"of snapshot {number}"
            if self.refer(f"L1 table {name}", l1, l1_size * 8):
                self._level1(name, l1, l1_size)
        if self.nb_snapshots:
            self.refer("snapshot table", self.snapshots_offset, at - self.snapshots_offset)

    # ---- tables -----------------------------------------------------------------------------

    def _level1(self, name: str, offset: int, size: int) -> None:
        for index, entry in enumerate(self.table(offset, size)):
            if entry & L1_RESERVED:
                self.problems.append(f"L1 entry {index} {name} has reserved bits: {entry:#x}")
            where = entry & OFFSET
            if not where:
                continue
            if not name:
                self._copied(f"L1 entry {index}", entry, where)
            if self.refer(f"L2 table {index} {name}", where, self.cluster):
                self._level2(name, index, where)

    def _level2(self, name: str, index: int, offset: int) -> None:
        count = self.cluster // 8 // self.words
        words = self.table(offset, self.cluster // 8)
        for number in range(count):
            entry = words[number * self.words]
            bitmap = words[number * 2 + 1] if self.words == 2 else None
            if entry or bitmap:
                guest = index * count + number
                self._entry(f"L2 entry of cluster {guest} {name}", entry, bitmap, guest, not name)

    def _entry(self, name: str, entry: int, bitmap: int | None, guest: int, active: bool) -> None:
        if entry & COMPRESSED:
            shift = 62 - (self.bits - 8)
            host = entry & ((1 << shift) - 1)
            sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1
            self.count(host, (sectors << 9) - (host & 511))
            if entry & COPIED or host >= self.end or bitmap:
                self.problems.append(f"{name} is impossible: {entry:#x}, bitmap {bitmap}")
            return
        reserved = L2_RESERVED if bitmap is None and self.version > 2 else L2_RESERVED | 1
        if entry & reserved:
            self.problems.append(f"{name} has reserved bits: {entry:#x}")
        if bitmap is not None and bitmap & (bitmap >> 32) & 0xFFFF_FFFF:
            self.problems.append(f"{name} has subclusters that are zero and data: {bitmap:#x}")
        host = entry & OFFSET
        if self.has_data_file:
            return
        if bitmap is not None and bitmap & 0xFFFF_FFFF and not host:
            self.problems.append(f"{name} has data, and no place")
        if host and self.refer(name, host, self.cluster, place=False) and active:
            self._copied(name, entry, host)
            self.mapped[guest] = host

    def _copied(self, name: str, entry: int, host: int) -> None:
        """Judged when the refcounts are known."""
        self._flags.append((name, bool(entry & COPIED), host >> self.bits))

    _flags: list[tuple[str, bool, int]] = attrs.field(factory=list)

    # ---- refcounts --------------------------------------------------------------------------

    def refcounts(self) -> Iterator[tuple[int, int]]:
        """(cluster, refcount) of all that are not 0, as the file says."""
        bits = 1 << self.order
        per_block = self.cluster * 8 // bits
        entries = self.reftable_clusters << (self.bits - 3)
        for index, entry in enumerate(self.table(self.reftable_offset, entries)):
            if entry & 511:
                self.problems.append(f"refcount table entry {index} has reserved bits")
            if entry and self.refer(f"refcount block {index}", entry & -512, self.cluster):
                block = self.content[entry : entry + self.cluster].rstrip(b"\0")
                block = block.ljust(-(-len(block) // 8) * 8, b"\0")
                for number, value in enumerate(_unpack(block, bits)):
                    if value:
                        yield index * per_block + number, value

    def compare(self) -> None:
        """References against refcounts."""
        counted = dict(self.refcounts())  # refers to the refcount blocks, too
        for cluster, count in self._counts.items():
            if counted.get(cluster, 0) < count:
                self.problems.append(
                    f"cluster {cluster} has {count} references and "
                    f"a refcount of {counted.get(cluster, 0)}"
                )
        last = self.end >> self.bits  # of what lies past the end, QEMU says nothing
        self.leaks = sum(
            value > self._counts[number] for number, value in counted.items() if number < last
        )
        for name, copied, cluster in self._flags:
            if copied and self._counts[cluster] > 1:
                self.problems.append(f"{name} has a COPIED flag, and is shared")
            elif copied != (counted.get(cluster, 0) == 1):
                self.copied_wrong.append(f"{name} has a wrong COPIED flag")


def _unpack(block: bytes, bits: int) -> Iterator[int]:
    if bits >= 8:
        yield from struct.unpack(f">{len(block) * 8 // bits}{'_BH_I___Q'[bits // 8]}", block)
        return
    mask = (1 << bits) - 1
    for byte in block:
        for shift in range(0, 8, bits):
            yield byte >> shift & mask


def walk(content: bytes) -> Walk:
    """Look at an image.

    Args:
        content: all of the file.
    """
    found = Walk(content)
    found.references()
    found.compare()
    return found


def inconsistent(content: bytes) -> list[str]:
    """What is wrong with an image's tables; refcounts are not, where the dirty bit is set."""
    found = walk(content)
    if found.incompatible & 1:
        return [each for each in found.problems if "refcount of" not in each]
    return found.problems + found.copied_wrong
