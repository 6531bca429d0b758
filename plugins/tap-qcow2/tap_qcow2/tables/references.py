"""What an L1 table leads to, as runs of host clusters, and counting that up and down.

A snapshot shares tables and data with the disk: each path from an L1 table to a cluster is a
reference of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from tap_qcow2.check.verdicts import Rules, judge, runs
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.bigendian import Words
from tapcore import ImageFormatError

if TYPE_CHECKING:
    from tap_qcow2.image import Image

_MOST_DIRTY: Final = 64 << 20
"""Bytes of refcount blocks that may have changed before they are written."""

_MOST_FREED: Final = 4096
"""Ranges that wait to be given back to the file system."""


def l2_offsets(image: Image, l1: Words) -> list[int]:
    """Where the L2 tables of an L1 table lie, bytes.

    Raises:
        ImageFormatError: an entry is not possible.
    """
    low, size = image.geometry.cluster_size - 1, image.file.size
    found = [entry & layout.OFFSET_MASK for entry in l1 if entry & layout.OFFSET_MASK]
    if any(offset & low or offset >= size for offset in found):
        raise ImageFormatError("has an impossible L1 entry: check and repair it")
    return found


def references(image: Image, l1: Words) -> Iterator[tuple[int, int]]:
    """Everything that an L1 table leads to: (first host cluster, how many side by side).

    Args:
        image: with nothing waiting to be written; its data lies in the image file.
        l1: entries.

    Raises:
        ImageFormatError: an entry is not possible.
        OSError: as the system says.
    """
    rules = Rules.of(image.header, image.file.size)
    for offset in l2_offsets(image, l1):
        yield offset >> image.cluster_bits, 1
        content = image.file.read_metadata(offset, image.geometry.cluster_size)
        yield from _table_references(rules, bigendian.from_bytes(content))


def _table_references(rules: Rules, table: Words) -> Iterator[tuple[int, int]]:
    geometry = rules.geometry
    bits, size = geometry.cluster_bits, geometry.cluster_size
    entries = table[::2] if geometry.extended else table
    live = sorted(entry for entry in entries if entry > 1)  # few refcount blocks, one by one
    for entry, count in runs(live, size):
        first = (entry & layout.OFFSET_MASK) >> bits
        if first and not entry & rules.odd and first + count <= rules.clusters:
            yield first, count
            continue
        for number in range(count):
            found = judge(rules, entry + number * size)
            if found.lost:
                raise ImageFormatError(f"has an impossible L2 entry ({entry:#x}): check it")
            if found.length:
                first = found.offset >> bits
                yield first, ((found.offset + found.length - 1) >> bits) - first + 1


def count_up(image: Image, l1: Words) -> None:
    """Count one more reference to all that an L1 table leads to, or none.

    Raises:
        TapError, OSError: nothing has changed.
    """
    done = 0
    most_dirty = _most_dirty(image)
    try:
        for cluster, count in references(image, l1):
            image.refcounts.add_run(cluster, count, 1)
            done += 1
            if len(image.refcounts.dirty) > most_dirty:
                image.writeback.all_now()
    except BaseException:
        _count_down(image, itertools.islice(references(image, l1), done))
        raise


def _most_dirty(image: Image) -> int:
    return max(_MOST_DIRTY >> image.cluster_bits, 16)


def count_down(image: Image, l1: Words, more: Iterable[tuple[int, int]] = ()) -> None:
    """Count one reference less, on disk when this returns, and give back what is free then.

    Args:
        image: nothing on disk has these references any more.
        l1: entries of the table that is given up.
        more: other runs of clusters: (first, how many).

    Raises:
        TapError, OSError: some are leaked.
    """
    _count_down(image, itertools.chain(references(image, l1), more))
    image.writeback.all_now()


def _count_down(image: Image, runs: Iterable[tuple[int, int]]) -> None:
    freed: list[tuple[int, int]] = []
    most_dirty = _most_dirty(image)
    for cluster, count in runs:
        freed += image.refcounts.add_run(cluster, count, -1)
        if len(image.refcounts.dirty) > most_dirty or len(freed) > _MOST_FREED:
            _give_back(image, freed)
    _give_back(image, freed)


def _give_back(image: Image, freed: list[tuple[int, int]]) -> None:
    """Punch holes where clusters are free on disk."""
    image.writeback.all_now()
    size = image.geometry.cluster_size
    for cluster, count in sorted(freed):
        if res := image.file.discard_blocking(cluster * size, count * size):
            raise OSError(-res, "giving back space failed")
    freed.clear()
