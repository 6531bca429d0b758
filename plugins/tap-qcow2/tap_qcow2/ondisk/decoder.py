"""What the entries of one image's L2 tables say: one by one, and those of a whole table.

Source: qcow2.rst, "Cluster mapping", "Extended L2 Entries".
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import (
    ALL_DATA,
    ALL_ZEROES,
    COMPRESSED,
    COPIED,
    DATA,
    L2_RESERVED,
    OFFSET_MASK,
    PACKED,
    UNALLOCATED,
    ZERO,
    ZEROES,
    data_and_zero,
    runs,
)
from tap_qcow2.ondisk.layout import SUBCLUSTERS, Geometry
from tapcore import SECTOR_SHIFT, ImageFormatError

_MANY: Final = 256
_NOTHING: Final = bigendian.zeroes(_MANY)
_WHOLE: Final = frozenset({0, ALL_DATA, ALL_ZEROES})
"""Bitmaps of clusters that are stored in one way."""

_PLACE: Final = OFFSET_MASK | PACKED | ZEROES


class Decoder:
    """What the entries of one image's L2 tables say.

    Args:
        geometry: of the image.
        version: of the format.
        elsewhere: plain clusters lie in an external data file. There one can lie at offset 0.

    Attributes:
        offset_mask: for the short ways in `driver`: where a plain cluster lies.
        not_plain: bits any of which makes an entry a case for the long way.
        single: what is left of `kind_mask` where a cluster can be written in place.
        kind_mask: `not_plain` and the flag.
    """

    def __init__(self, geometry: Geometry, version: int, elsewhere: bool) -> None:
        self.geometry = geometry
        self.elsewhere = elsewhere
        self._size = geometry.cluster_size
        self._low = geometry.cluster_size - 1
        self._sectors_shift = 62 - (geometry.cluster_bits - 8)
        self._sectors_mask = (1 << (geometry.cluster_bits - 8)) - 1
        self._start_mask = (1 << self._sectors_shift) - 1
        self.offset_mask = OFFSET_MASK
        self.single = COPIED
        self.not_plain = PACKED | ZEROES | self._low & OFFSET_MASK
        self.kind_mask = COPIED | self.not_plain
        self.set_version(version)

    def set_version(self, version: int) -> None:
        """The image has another version now."""
        self.version = version
        self._zeroes = ZEROES if version >= 3 and not self.geometry.extended else 0
        self._reserved = L2_RESERVED if self._zeroes else L2_RESERVED | ZEROES
        self._odd = PACKED | self._reserved | self._low & OFFSET_MASK

    # ---- one entry --------------------------------------------------------------------------

    def decode(self, entry: int) -> tuple[int, int]:
        """How the cluster of a standard entry is stored, and where.

        Returns:
            Its kind; and the host offset (bytes), of zeroes that of the space that is kept for
            them, or 0; of a compressed cluster the entry itself.

        Raises:
            ImageFormatError: it is not possible.
        """
        if entry & PACKED:
            return COMPRESSED, entry
        host = entry & OFFSET_MASK
        if host & self._low:
            raise _impossible(entry)
        if entry & self._zeroes:
            return ZERO, host
        if host or (entry & COPIED and self.elsewhere):
            return DATA, host
        return UNALLOCATED, 0

    def check_extended(self, entry: int, bitmap: int) -> None:
        """Raise ImageFormatError for an extended entry that is not possible."""
        if entry & PACKED:
            return  # its bitmap says nothing, whatever it is
        host = entry & OFFSET_MASK
        if host & self._low or data_and_zero(bitmap):
            raise _impossible(entry)
        if bitmap & ALL_DATA and not host and not self.elsewhere:
            raise _impossible(entry)

    def own_space(self, entry: int) -> int:
        """Host offset of a plain cluster's space that nothing else refers to, bytes; -1: none.

        It may be that it holds nothing: that of zeroes, or of subclusters without data.
        """
        if entry & (COPIED | PACKED) != COPIED:
            return -1
        host = entry & OFFSET_MASK
        return host if host or self.elsewhere else -1

    def refers(self, entry: int) -> bool:
        """Whether an entry leads to space, its own or shared."""
        return bool(entry & (OFFSET_MASK | PACKED)) or bool(self.elsewhere and entry & COPIED)

    def stored_at(self, entry: int) -> int:
        """Offset in the image file of the plain cluster of an entry, bytes; 0: there is none."""
        return 0 if self.elsewhere or entry & PACKED else entry & OFFSET_MASK

    def compressed_range(self, entry: int) -> tuple[int, int]:
        """Where a compressed cluster lies: (byte offset, bytes in which its stream ends)."""
        offset = entry & self._start_mask
        sectors = ((entry >> self._sectors_shift) & self._sectors_mask) + 1
        return offset, (sectors << SECTOR_SHIFT) - (offset & 511)

    def reserved(self, entry: int) -> int:
        """The bits of a plain cluster's entry that it must not have."""
        return entry & self._reserved

    def says_zeroes(self, entry: int) -> bool:
        """Whether a standard entry that is not compressed has the flag for zeroes."""
        return bool(entry & self._zeroes)

    def sound_cluster(self, entry: int) -> int:
        """Number of the host cluster of a plain entry without anything odd; 0: look closer."""
        return 0 if entry & self._odd else (entry & OFFSET_MASK) >> self.geometry.cluster_bits

    # ---- new entries ------------------------------------------------------------------------

    def plain(self, host: int) -> int:
        """The entry of a plain cluster at a host offset (bytes), which nothing else refers to."""
        return host | COPIED

    def zeroes(self, host: int = -1) -> int:
        """The entry of a cluster of zeroes, with space of its own at a host offset, or none (-1).

        In version 2 there is no such thing: one without a place is unallocated.
        """
        return self._zeroes if host < 0 else ZEROES | host | COPIED

    def compressed_at(self, offset: int, length: int) -> int:
        """The entry of a compressed cluster of `length` bytes at a byte offset."""
        sectors = ((offset + length - 1) >> SECTOR_SHIFT) - (offset >> SECTOR_SHIFT)
        return PACKED | offset | (sectors << self._sectors_shift)

    def ending_at(self, entry: int, end: int) -> int:
        """The entry of the same compressed cluster, of which nothing lies behind `end` (bytes)."""
        offset = entry & self._start_mask
        sectors = (end - (offset & ~511)) >> SECTOR_SHIFT
        without = entry & ~(self._sectors_mask << self._sectors_shift)
        return without | (sectors - 1 << self._sectors_shift)

    # ---- many entries -----------------------------------------------------------------------

    def run(self, entries: Words, at: int, last: int) -> tuple[int, int, int]:
        """The standard entries that go on as one does: (kind, where, how many).

        Args:
            entries: of a table.
            at: number of the first one; what it says is returned, as by `decode`.
            last: number of the last one that is of interest.

        Raises:
            ImageFormatError: the first one is not possible.
        """
        entry = entries[at]
        if entry & self.not_plain or not entry & OFFSET_MASK:
            kind, where = self.decode(entry)
        else:  # nearly all are
            kind, where = DATA, entry & OFFSET_MASK
        if kind == COMPRESSED:
            return kind, where, 1
        if kind != DATA:
            return kind, where, self._alike(entries, at, last, kind, where)
        more, size = 1, self._size
        while at + more <= last and entries[at + more] & _PLACE == where + more * size:
            more += 1
        return kind, where, more

    def _alike(self, entries: Words, at: int, last: int, kind: int, where: int) -> int:
        """How many clusters are zero, or unallocated, like the first one."""
        more = 1
        if kind == UNALLOCATED:
            while at + more + _MANY <= last and entries[at + more : at + more + _MANY] == _NOTHING:
                more += _MANY
            rest = entries[at + more : min(at + more + _MANY, last + 1)]
            if not any(rest):
                return more + len(rest)
        step = self._size if where else 0
        while at + more <= last:
            try:
                found = self.decode(entries[at + more])
            except ImageFormatError:  # is told to whoever asks for that cluster
                break
            if found != (kind, where + more * step):
                break
            more += 1
        return more

    def alike(self, entries: Words, at: int, most: int) -> int:
        """How many clusters, from the extended entry at a word on, are whole and go on as it does.

        Args:
            entries: of a table.
            at: of an entry that is possible, and not compressed.
            most: so many are of interest.

        Returns:
            0 where the subclusters of the first one differ.
        """
        entry, bitmap = entries[at], entries[at + 1]
        if bitmap not in _WHOLE or not most:
            return 0
        if bitmap == ALL_DATA and not entry & OFFSET_MASK:  # in a data file: its first cluster
            return 1
        more = 1
        if not entry:
            same = array(entries.typecode, (0, bitmap)) * _MANY
            while more + _MANY <= most:
                if entries[at + 2 * more : at + 2 * (more + _MANY)] != same:
                    break
                more += _MANY
        step = self._size if entry & OFFSET_MASK else 0
        while more < most and entries[at + 2 * more + 1] == bitmap:
            if entries[at + 2 * more] != entry + more * step:
                break
            more += 1
        return more

    def live(self, entries: Words) -> list[int]:
        """Those of a table (without its bitmaps) that lead somewhere, and some that are odd."""
        each = entries if self.geometry.words == 1 else entries[:: self.geometry.words]
        return [entry for entry in each if entry > ZEROES]

    def extended(self, entries: Words) -> tuple[list[int], list[tuple[int, int]]]:
        """The entries of an extended table of which place and flags tell all, and the other ones.

        Returns:
            Entries; and (entry, bitmap) of those that have to be looked at closely.
        """
        live: list[int] = []
        closely: list[tuple[int, int]] = []
        for entry, bitmap in zip(entries[::2], entries[1::2], strict=True):
            usual = entry & OFFSET_MASK and not bitmap & bitmap >> SUBCLUSTERS & ALL_DATA
            if (not bitmap) if entry & PACKED else usual:
                live.append(entry)
            elif entry or bitmap:
                closely.append((entry, bitmap))
        return live, closely

    def packed(self, entry: int) -> bool:
        """Whether it is the entry of a compressed cluster, without a flag that it must not have."""
        return entry & (COPIED | PACKED) == PACKED

    def packed_clusters(self, entries: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
        """What entries of compressed clusters lead to.

        Args:
            entries: all of compressed clusters.
            limit: those of which the last sector reaches so far (bytes) are not sound.

        Returns:
            Numbers of the host clusters that the sound ones touch, for each one; and the others.
        """
        mask, shift, most = self._start_mask, self._sectors_shift, self._sectors_mask
        bits = self.geometry.cluster_bits
        clusters: list[int] = []
        others: list[int] = []
        for entry in entries:
            start = entry & mask
            end = (start & ~511) + (((entry >> shift & most) + 1) << SECTOR_SHIFT)
            if end >= limit:
                others.append(entry)
            else:
                clusters.extend(range(start >> bits, ((end - 1) >> bits) + 1))
        return clusters, others

    def clusters(self, entries: Words) -> set[int]:
        """Numbers of all clusters of the image file that the entries of a table lead to.

        Raises:
            ImageFormatError: one is not possible.
        """
        each = entries if self.geometry.words == 1 else entries[:: self.geometry.words]
        bits = self.geometry.cluster_bits
        found: set[int] = set()
        if not self.elsewhere:
            hosts = {
                entry & OFFSET_MASK for entry in each if entry & OFFSET_MASK and not entry & PACKED
            }
            if any(host & self._low for host in hosts):
                raise ImageFormatError("has an impossible L2 entry", errno=errno.EIO)
            found = {host >> bits for host in hosts}
        for entry in each:
            if entry & PACKED:
                offset, length = self.compressed_range(entry)
                found.update(range(offset >> bits, ((offset + length - 1) >> bits) + 1))
        return found

    def ranges(self, entries: Words) -> Iterator[tuple[int, int]]:
        """The ranges of the file that the entries of a table lead to: [start, end) in bytes."""
        live = [
            entry & (~COPIED if entry & PACKED else OFFSET_MASK)
            for entry in entries[:: self.geometry.words]
            if entry & OFFSET_MASK
        ]
        for entry, count in runs(live, self._size):
            if not entry & PACKED:
                yield entry, entry + count * self._size
                continue
            for number in range(count):
                offset, length = self.compressed_range(entry + number * self._size)
                yield offset, offset + length

    def zero_clusters(self, entries: Words) -> Iterator[tuple[int, int]]:
        """The standard entries of zeroes: (number, host offset of the space that is kept, or 0)."""
        for number, entry in enumerate(entries):
            if entry & self._zeroes and not entry & PACKED:
                yield number, entry & OFFSET_MASK

    def begin_behind(self, entries: Words, end: int) -> int:
        """How many of the clusters with content begin at or behind an offset in the file."""
        words = self.geometry.words
        if words == 2:
            data = [e for e, b in zip(entries[::2], entries[1::2], strict=True) if b & ALL_DATA]
        else:
            data = [entry for entry in entries if not entry & (PACKED | self._zeroes)]
        packed = [entry for entry in entries[::words] if entry & PACKED]
        start = self._start_mask
        return sum(e & OFFSET_MASK >= end for e in data) + sum(e & start >= end for e in packed)


def _impossible(entry: int) -> ImageFormatError:
    return ImageFormatError(f"has an impossible L2 entry ({entry:#x})", errno=errno.EIO)
