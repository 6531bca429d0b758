"""COPIED flags: whether what an entry of the active tables points to is referred to only once.

Source: qcow2.rst, "L1 table entry", "L2 table entry".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import copied, flagged, offset_of, runs, shared_table
from tap_qcow2.ondisk.verdicts import Rules, judge
from tap_qcow2.tables.metadata import Metadata
from tapcore import ImageFile

_PIECE: Final = 512
"""Changed tables are written by the sector, so that no entry is ever torn."""


class References(Protocol):
    """How often host clusters are referred to."""

    def get(self, cluster: int) -> int:
        """How often one is."""

    def ones(self, cluster: int, count: int) -> int:
        """How many of the clusters side by side are referred to exactly once."""


def flagged_runs(rules: Rules, entries: Words) -> Iterator[tuple[int, int, bool]]:
    """The entries of an L2 table whose COPIED flag tells something: (host cluster, how many, it).

    Args:
        rules: of the image.
        entries: of the table.
    """
    decoder, geometry = rules.decoder, rules.geometry
    for entry, count in runs(decoder.live(entries), geometry.cluster_size):
        first = decoder.sound_cluster(entry)
        if first:
            yield first, count, copied(entry)
            continue
        for number in range(count):
            each = entry + number * geometry.cluster_size
            if judge(rules, each).flagged:
                yield offset_of(each) >> geometry.cluster_bits, 1, copied(each)


def set_flags(
    metadata: Metadata, rules: Rules, tables: Iterable[int], references: References
) -> None:
    """Write the COPIED flags of the active L1 table, and of L2 tables, as they should be.

    Args:
        metadata: of the image; nothing is waiting to be written.
        rules: of it.
        tables: offsets of the L2 tables (bytes), each a cluster's.
        references: to clusters.

    Raises:
        OSError: as the system says.
    """
    file, header, geometry = metadata.file, metadata.header, metadata.geometry
    for offset, content in bigendian.parts(file, header.l1_table_offset, header.l1_size):
        if content.count(0) == len(content):  # most of the table, of a large disk with little on it
            continue
        entries = bigendian.from_bytes(content)
        for index, entry in enumerate(entries):
            cluster = offset_of(entry) >> geometry.cluster_bits
            if cluster:
                entries[index] = flagged(entry, references.get(cluster) == 1)
        write_changed(file, offset, content, bigendian.to_bytes(entries))
    for offset in tables:
        content = file.read_metadata(offset, geometry.cluster_size)
        entries = bigendian.from_bytes(content)
        if not _fit(rules, references, entries):
            _correct(rules, references, entries)
            write_changed(file, offset, content, bigendian.to_bytes(entries))
    metadata.flush()


def _fit(rules: Rules, references: References, entries: Words) -> bool:
    for first, count, flag in flagged_runs(rules, entries):
        single = count if rules.data_file else references.ones(first, count)
        if single != (count if flag else 0):
            return False
    return True


def _correct(rules: Rules, references: References, entries: Words) -> None:
    bits, step = rules.geometry.cluster_bits, rules.geometry.words
    for at in range(0, len(entries), step):
        entry = entries[at]
        if entry > 1 and judge(rules, entry, entries[at + 1] if step == 2 else 0).flagged:
            cluster = offset_of(entry) >> bits
            entries[at] = flagged(entry, rules.data_file or references.get(cluster) == 1)


def clear_flags(metadata: Metadata, tables: Iterable[int]) -> None:
    """Write L2 tables of which all is shared from now on: without any COPIED flag.

    Args:
        metadata: of the image; nothing is waiting to be written.
        tables: their offsets (bytes).

    Raises:
        OSError: as the system says.
    """
    file, geometry = metadata.file, metadata.geometry
    for offset in tables:
        content = file.read_metadata(offset, geometry.cluster_size)
        cleared = shared_table(content, geometry.words)
        if cleared is not content:
            write_changed(file, offset, content, cleared)


def write_changed(file: ImageFile, offset: int, old: bytes, new: bytes) -> None:
    """Write the sectors of a table that differ, neighbours together.

    Args:
        file: the image file.
        offset: where the table lies, bytes.
        old: as it is there.
        new: as it should be.
    """
    at, length = 0, len(new)
    while at < length:
        if old[at : at + _PIECE] == new[at : at + _PIECE]:
            at += _PIECE
            continue
        start = at
        while at < length and old[at : at + _PIECE] != new[at : at + _PIECE]:
            at += _PIECE
        file.write_metadata(offset + start, new[start:at])
