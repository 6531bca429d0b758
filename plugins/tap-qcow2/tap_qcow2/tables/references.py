"""What an L1 table leads to, as runs of host clusters, and counting that up and down.

A snapshot shares tables and data with the disk: each path from an L1 table to a cluster is a
reference of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.entries import offsets_of, runs
from tap_qcow2.ondisk.verdicts import Rules, judge
from tap_qcow2.tables.metadata import Metadata
from tapcore import ImageFormatError
from tapcore.clusters import Writeback

_MOST_DIRTY: Final = 64 << 20
"""Bytes of refcount blocks that may have changed before they are written."""

_MOST_FREED: Final = 4096
"""Ranges that wait to be given back to the file system."""


def l2_offsets(metadata: Metadata, l1: Words) -> list[int]:
    """Where the L2 tables of an L1 table lie, bytes.

    Raises:
        ImageFormatError: an entry is not possible.
    """
    low, size = metadata.geometry.cluster_size - 1, metadata.file.size
    found = offsets_of(l1)
    if any(offset & low or offset >= size for offset in found):
        raise ImageFormatError("has an impossible L1 entry: check and repair it")
    return found


def references(metadata: Metadata, l1: Words) -> Iterator[tuple[int, int]]:
    """Everything that an L1 table leads to: (first host cluster, how many side by side).

    Args:
        metadata: with nothing waiting to be written; the image's data lies in the image file.
        l1: entries.

    Raises:
        ImageFormatError: an entry is not possible.
        OSError: as the system says.
    """
    file, geometry = metadata.file, metadata.geometry
    rules = Rules.of(metadata.header, file.size)
    for offset in l2_offsets(metadata, l1):
        yield offset >> geometry.cluster_bits, 1
        content = file.read_metadata(offset, geometry.cluster_size)
        yield from _table_references(rules, bigendian.from_bytes(content))


def _table_references(rules: Rules, table: Words) -> Iterator[tuple[int, int]]:
    bits, size = rules.geometry.cluster_bits, rules.geometry.cluster_size
    live = sorted(rules.decoder.live(table))  # few refcount blocks, one by one
    for entry, count in runs(live, size):
        first = rules.decoder.sound_cluster(entry)
        if first and first + count <= rules.clusters:
            yield first, count
            continue
        for number in range(count):
            found = judge(rules, entry + number * size)
            if found.lost:
                raise ImageFormatError(f"has an impossible L2 entry ({entry:#x}): check it")
            if found.length:
                first = found.offset >> bits
                yield first, ((found.offset + found.length - 1) >> bits) - first + 1


class ReferenceCounting:
    """Counts what an L1 table leads to, once more or once less.

    Args:
        metadata: of the image.
        writeback: brings refcounts to the disk, where many have changed.
    """

    def __init__(self, metadata: Metadata, writeback: Writeback) -> None:
        self._metadata = metadata
        self._refcounts = metadata.refcounts
        self._writeback = writeback
        self._most_dirty = max(_MOST_DIRTY >> metadata.geometry.cluster_bits, 16)

    def up(self, l1: Words) -> None:
        """Count one more reference to all that an L1 table leads to, or none.

        Raises:
            TapError, OSError: nothing has changed.
        """
        done = 0
        try:
            for cluster, count in references(self._metadata, l1):
                self._refcounts.add_run(cluster, count, 1)
                done += 1
                if len(self._refcounts.dirty) > self._most_dirty:
                    self._writeback.all_now()
        except BaseException:
            self._down(itertools.islice(references(self._metadata, l1), done))
            raise

    def down(self, l1: Words, more: Iterable[tuple[int, int]] = ()) -> None:
        """Count one reference less, on disk when this returns, and give back what is free then.

        Nothing on disk has these references any more.

        Args:
            l1: entries of the table that is given up.
            more: other runs of clusters: (first, how many).

        Raises:
            TapError, OSError: some are leaked.
        """
        self._down(itertools.chain(references(self._metadata, l1), more))
        self._writeback.all_now()

    def _down(self, runs: Iterable[tuple[int, int]]) -> None:
        freed: list[tuple[int, int]] = []
        for cluster, count in runs:
            freed += self._refcounts.add_run(cluster, count, -1)
            if len(self._refcounts.dirty) > self._most_dirty or len(freed) > _MOST_FREED:
                self._give_back(freed)
        self._give_back(freed)

    def _give_back(self, freed: list[tuple[int, int]]) -> None:
        """Punch holes where clusters are free on disk."""
        self._writeback.all_now()
        size = self._metadata.geometry.cluster_size
        for cluster, count in sorted(freed):
            if res := self._metadata.file.discard_blocking(cluster * size, count * size):
                raise OSError(-res, "giving back space failed")
        freed.clear()
