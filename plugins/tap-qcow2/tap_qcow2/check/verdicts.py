"""What an entry of an L2 table says, whether that can be true, and what it could say instead.

Source: qcow2.rst, "L2 table entry", "Extended L2 Entries". What is called wrong is what QEMU calls
wrong, and besides that bits which are reserved: the zero flag in version 2 and in extended entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import Header
from tapcore import SECTOR_SHIFT


@attrs.frozen
class Rules:
    """What entries of an image may be.

    Attributes:
        version: of the format.
        geometry: of the image.
        data_file: plain clusters lie in another file.
        data_clusters: that this file has, the last one perhaps in part; None where that is not
            known.
        file_size: of the image file, bytes.
        clusters: that it has, the last one perhaps in part.
        odd: bits that a sound L2 entry of a plain cluster has not.
        zeroable: an entry that leads nowhere can be made to read as zeroes, which is what QEMU
            reads past the end of the file. Version 2 cannot say that above a parent, and encrypted
            data would have been decrypted.
    """

    version: int
    geometry: layout.Geometry
    data_file: bool
    file_size: int
    clusters: int
    odd: int
    data_clusters: int | None = None
    zeroable: bool = True

    @classmethod
    def of(cls, header: Header, file_size: int, data_size: int | None = None) -> Rules:
        """Those of an image, with a file, and perhaps a data file, of so many bytes."""
        geometry = header.geometry
        odd = layout.COMPRESSED | layout.L2_RESERVED
        odd |= (geometry.cluster_size - 1) & layout.OFFSET_MASK
        if header.version < 3 or geometry.extended:
            odd |= layout.ZERO
        clusters = geometry.clusters(file_size)
        data = None if data_size is None else geometry.clusters(data_size)
        zeroable = header.crypt_method == layout.CRYPT_NONE
        zeroable &= header.version >= 3 or not header.backing_file
        data_file = header.has_data_file
        return cls(header.version, geometry, data_file, file_size, clusters, odd, data, zeroable)

    def missing(self, first: int, count: int) -> bool:
        """Whether plain clusters lie past the end of their file, the last one at least."""
        end = self.data_clusters if self.data_file else self.clusters
        return end is not None and first + count > end

    def inside(self, offset: int, length: int) -> bool:
        """Whether a range can be there: the last cluster of the file may be cut short."""
        return offset + length - self.file_size < self.geometry.cluster_size


@attrs.define
class Verdict:
    """What to think of an L2 entry.

    Attributes:
        entry: as it should be.
        bitmap: the same, where entries are extended.
        problems: what is wrong with it.
        offset: of what it refers to in the image file, bytes.
        length: of that; 0: it refers to nothing there.
        allocated: it counts as an allocated cluster.
        compressed: and as a compressed one.
        flagged: its COPIED flag tells something.
        lost: what it stood for cannot be read; it is made to read as zeroes.
        missing: it is lost because the file ends before.
    """

    entry: int
    bitmap: int
    problems: list[str] = attrs.field(factory=list)
    offset: int = 0
    length: int = 0
    allocated: bool = False
    compressed: bool = False
    flagged: bool = False
    lost: bool = False
    missing: bool = False

    def lose(self, rules: Rules) -> None:
        """It leads nowhere: zeroes instead. Where there can be none it stays, and stays wrong."""
        if not rules.zeroable:
            return
        self.lost = True
        if rules.geometry.extended:
            stored = layout.ALL_ALLOCATED if self.compressed else self.bitmap
            self.entry = 0
            self.bitmap = self.bitmap & layout.ALL_ZERO | (stored & layout.ALL_ALLOCATED) << 32
        else:
            self.entry = layout.ZERO if rules.version >= 3 else 0


def judge(rules: Rules, entry: int, bitmap: int = 0) -> Verdict:
    """Judge an L2 entry.

    Args:
        rules: of the image.
        entry: as it is.
        bitmap: of its subclusters, where entries are extended.
    """
    if entry & layout.COMPRESSED:
        return _judge_compressed(rules, entry, bitmap)
    found = Verdict(entry, bitmap)
    reserved = layout.L2_RESERVED | (rules.odd & layout.ZERO)
    if entry & reserved:
        found.problems.append("has reserved bits")
        found.entry &= ~reserved
    host = entry & layout.OFFSET_MASK
    if not host and not (rules.data_file and entry & layout.COPIED):
        _judge_without_place(rules, found)
    elif host or rules.geometry.extended or not entry & layout.ZERO:
        _judge_place(rules, found, host)
    return found


def _judge_compressed(rules: Rules, entry: int, bitmap: int) -> Verdict:
    found = Verdict(entry & ~layout.COPIED, 0, compressed=True)
    if entry & layout.COPIED:
        found.problems.append("is compressed and flagged as COPIED")
    if rules.data_file:
        found.problems.append("is compressed, in an image with a data file")
        found.lose(rules)
        found.compressed = False
        return found
    if bitmap:
        found.problems.append("is compressed, and has a bitmap of subclusters")
    found.allocated = True
    offset, length = rules.geometry.compressed(entry)
    if rules.inside(offset, length):
        found.offset, found.length = offset, length
    elif offset < rules.file_size:
        found.problems.append("reaches past the end of the file")
        found.entry = _shortened(rules, found.entry)
        found.offset, found.length = rules.geometry.compressed(found.entry)
    else:
        found.missing = True
        found.problems.append("lies outside of the file")
        found.lose(rules)
    return found


def _shortened(rules: Rules, entry: int) -> int:
    """A compressed cluster that ends with the file: what lies behind is no part of its stream."""
    geometry = rules.geometry
    offset, _ = geometry.compressed(entry)
    sectors = ((rules.clusters << geometry.cluster_bits) - (offset & ~511)) >> SECTOR_SHIFT
    return entry & ~(geometry.csize_mask << geometry.csize_shift) | (
        sectors - 1 << geometry.csize_shift
    )


def _judge_without_place(rules: Rules, found: Verdict) -> None:
    if rules.geometry.extended and found.bitmap & layout.ALL_ALLOCATED:
        found.problems.append("has subclusters with data, and no place for them")
        found.bitmap &= ~layout.ALL_ALLOCATED


def _judge_place(rules: Rules, found: Verdict, host: int) -> None:
    size = rules.geometry.cluster_size
    found.flagged = True
    both = found.bitmap & found.bitmap >> 32 & layout.ALL_ALLOCATED
    if both:
        found.problems.append("has subclusters that are data and zero at once")
        found.bitmap &= ~(both << 32)
    if host & (size - 1):
        found.problems.append("does not point to a cluster's boundary")
        found.lose(rules)
    found.allocated = True
    content = (
        found.bitmap & layout.ALL_ALLOCATED
        if rules.geometry.extended
        else not (found.entry & layout.ZERO)
    )
    if rules.data_file:
        if content and not found.lost and rules.missing(host // size, 1):
            found.missing = True
            found.problems.append("lies past the end of the data file")
            found.lose(rules)
        return
    if rules.inside(host, size):
        found.offset, found.length = host, size
    else:
        found.missing = bool(content) and not found.lost
        found.problems.append("lies outside of the file")
        found.lose(rules)


def runs(live: Sequence[int], step: int) -> list[tuple[int, int]]:
    """Join entries of which each points behind the one before, with the same flags.

    Args:
        live: entries.
        step: bytes from one cluster to the next.

    Returns:
        (first entry, how many).
    """
    found: list[tuple[int, int]] = []
    if not live:
        return found
    start = want = live[0]
    for entry in live:
        if entry != want:
            found.append((start, (want - start) // step))
            start = entry
        want = entry + step
    found.append((start, (want - start) // step))
    return found
