"""What an entry of an L2 table says, whether that can be true, and what it could say instead.

Source: qcow2.rst, "L2 table entry", "Extended L2 Entries". What is called wrong is what QEMU calls
wrong, and besides that bits which are reserved: the zero flag in version 2 and in extended entries.
"""

from __future__ import annotations

import attrs

from tap_qcow2.ondisk import entries, layout
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import ALL_DATA
from tap_qcow2.ondisk.header import Header


@attrs.frozen
class Rules:
    """What entries of an image may be.

    Attributes:
        decoder: of the image's entries.
        geometry: of the image.
        data_file: plain clusters lie in another file.
        data_clusters: that this file has, the last one perhaps in part; None where that is not
            known.
        file_size: of the image file, bytes.
        clusters: that it has, the last one perhaps in part.
        zeroable: an entry that leads nowhere can be made to read as zeroes, which is what QEMU
            reads past the end of the file. Version 2 cannot say that above a parent, and encrypted
            data would have been decrypted.
    """

    decoder: Decoder
    geometry: layout.Geometry
    data_file: bool
    file_size: int
    clusters: int
    data_clusters: int | None = None
    zeroable: bool = True

    @classmethod
    def of(cls, header: Header, file_size: int, data_size: int | None = None) -> Rules:
        """Those of an image, with a file, and perhaps a data file, of so many bytes."""
        geometry, data_file = header.geometry, header.has_data_file
        decoder = Decoder(geometry, header.version, data_file)
        clusters = geometry.clusters(file_size)
        data = None if data_size is None else geometry.clusters(data_size)
        zeroable = header.crypt_method == layout.CRYPT_NONE
        zeroable &= header.version >= 3 or not header.backing_file
        return cls(decoder, geometry, data_file, file_size, clusters, data, zeroable)

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
            stored = ALL_DATA if self.compressed else self.bitmap & ALL_DATA
            self.entry = 0
            self.bitmap = entries.with_zeroes(entries.without_data(self.bitmap), stored)
        else:
            self.entry = rules.decoder.zeroes()


def judge(rules: Rules, entry: int, bitmap: int = 0) -> Verdict:
    """Judge an L2 entry.

    Args:
        rules: of the image.
        entry: as it is.
        bitmap: of its subclusters, where entries are extended.
    """
    if entries.compressed(entry):
        return _judge_compressed(rules, entry, bitmap)
    found = Verdict(entry, bitmap)
    if reserved := rules.decoder.reserved(entry):
        found.problems.append("has reserved bits")
        found.entry &= ~reserved
    host = entries.offset_of(entry)
    if not rules.decoder.refers(entry):
        _judge_without_place(rules, found)
    elif host or rules.geometry.extended or not rules.decoder.says_zeroes(entry):
        _judge_place(rules, found, host)
    return found


def _judge_compressed(rules: Rules, entry: int, bitmap: int) -> Verdict:
    found = Verdict(entries.flagged(entry, False), 0, compressed=True)
    if entries.copied(entry):
        found.problems.append("is compressed and flagged as COPIED")
    if rules.data_file:
        found.problems.append("is compressed, in an image with a data file")
        found.lose(rules)
        found.compressed = False
        return found
    if bitmap:
        found.problems.append("is compressed, and has a bitmap of subclusters")
    found.allocated = True
    offset, length = rules.decoder.compressed_range(entry)
    if rules.inside(offset, length):
        found.offset, found.length = offset, length
    elif offset < rules.file_size:
        found.problems.append("reaches past the end of the file")
        # what lies behind the file's last cluster is no part of its stream
        end = rules.clusters << rules.geometry.cluster_bits
        found.entry = rules.decoder.ending_at(found.entry, end)
        found.offset, found.length = rules.decoder.compressed_range(found.entry)
    else:
        found.missing = True
        found.problems.append("lies outside of the file")
        found.lose(rules)
    return found


def _judge_without_place(rules: Rules, found: Verdict) -> None:
    if rules.geometry.extended and found.bitmap & ALL_DATA:
        found.problems.append("has subclusters with data, and no place for them")
        found.bitmap = entries.without_data(found.bitmap)


def _judge_place(rules: Rules, found: Verdict, host: int) -> None:
    size = rules.geometry.cluster_size
    found.flagged = True
    if both := entries.data_and_zero(found.bitmap):
        found.problems.append("has subclusters that are data and zero at once")
        found.bitmap = entries.with_data(found.bitmap, both)
    if host & (size - 1):
        found.problems.append("does not point to a cluster's boundary")
        found.lose(rules)
    found.allocated = True
    content = (
        found.bitmap & ALL_DATA
        if rules.geometry.extended
        else not rules.decoder.says_zeroes(found.entry)
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
