"""Entries of tables: which bits they have, and what these say.

An entry of an L1 table leads to an L2 table. An entry of an L2 table says of one cluster of the
disk in which way it is stored, and where; an extended one has a second word besides, with two bits
for each of 32 subclusters. What depends on the image says `decoder`, the only other module that
knows a bit.

Source: qcow2.rst, "Cluster mapping", "Extended L2 Entries", "Host cluster management", "Bitmap
table".
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from tap_qcow2.ondisk.bigendian import Words
from tap_qcow2.ondisk.layout import SUBCLUSTERS

UNALLOCATED: Final = 0
ZERO: Final = 1
DATA: Final = 2
COMPRESSED: Final = 3
"""Ways in which a cluster, or a subcluster, is stored."""

COPIED: Final = 1 << 63
"""The refcount of what the entry leads to is exactly one: it may be written in place."""

PACKED: Final = 1 << 62
"""The cluster is compressed: the other bits are its byte offset, and how many sectors it takes."""

ZEROES: Final = 1 << 0
"""A cluster reads as zeroes, whether it has space or not: in version 3, not in extended entries."""

OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
"""Of an L2 table, a plain cluster, or a cluster of a bitmap: bytes."""

_L1_RESERVED: Final = 0x7F00_0000_0000_01FF
L2_RESERVED: Final = 0x3F00_0000_0000_01FE
_BLOCK_RESERVED: Final = 0x1FF
_BITMAP_RESERVED: Final = 0xFF00_0000_0000_01FE

ALL_DATA: Final = (1 << SUBCLUSTERS) - 1
"""A bitmap of subclusters: all of them have data. The low half says that of each."""

ALL_ZEROES: Final = ALL_DATA << SUBCLUSTERS
"""All of them read as zeroes, which the high half says."""

BITS_ALL_SET: Final = 1 << 0
"""A bitmap table's entry without a cluster: all its bits are set. 0: none is."""


# ---- all entries that lead somewhere ---------------------------------------------------------


def offset_of(entry: int) -> int:
    """Where what an entry leads to lies, bytes; 0: it leads nowhere. Not of a compressed cluster.

    Of an L1 entry the L2 table, of an L2 entry the plain cluster, of a bitmap table's the bits.
    """
    return entry & OFFSET_MASK


def offsets_of(entries: Words) -> list[int]:
    """The same of many that are not compressed clusters; without those that lead nowhere."""
    return [entry & OFFSET_MASK for entry in entries if entry & OFFSET_MASK]


def moved(entry: int, offset: int) -> int:
    """The same entry, leading to another place."""
    return entry & ~OFFSET_MASK | offset


def copied(entry: int) -> bool:
    """Whether it says that nothing else refers to what it leads to."""
    return bool(entry & COPIED)


def flagged(entry: int, single: bool) -> int:
    """The same entry, saying that nothing else refers to what it leads to, or not saying so."""
    return entry | COPIED if single else entry & ~COPIED


def shared(entries: Words) -> Words:
    """A table of one-word entries of which everything is shared: without any COPIED flag."""
    return array("Q", [entry & ~COPIED for entry in entries])


def shared_table(content: bytes, words: int) -> bytes:
    """The same of an L2 table as it lies on disk.

    Args:
        content: of the table.
        words: 64-bit words in an entry.
    """
    one = COPIED.to_bytes(8, "big") + bytes(8 * (words - 1))
    flags = int.from_bytes(one * (len(content) // len(one)), "big")
    whole = int.from_bytes(content, "big")  # all of the table at once
    return (whole & ~flags).to_bytes(len(content), "big") if whole & flags else content


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


# ---- L1 tables, refcount tables, tables of bitmaps -------------------------------------------


def l1_entry(offset: int, *, single: bool = True) -> int:
    """An L1 entry that leads to an L2 table (bytes), which perhaps nothing else refers to."""
    return flagged(offset, single)


def l1_reserved(entry: int) -> bool:
    """Whether an L1 entry has bits that it must not have."""
    return bool(entry & _L1_RESERVED)


def block_offset(entry: int) -> int:
    """Where the refcount block of a refcount table's entry lies, bytes; other bits are reserved."""
    return entry & ~_BLOCK_RESERVED


def bits_possible(word: int) -> bool:
    """Whether a bitmap table's entry has none but the bits that it may have."""
    return not (word & _BITMAP_RESERVED or (word & OFFSET_MASK and word & BITS_ALL_SET))


# ---- subclusters -----------------------------------------------------------------------------


def subcluster_kind(bitmap: int, number: int) -> int:
    """How one subcluster of a cluster that is not compressed is stored."""
    if bitmap >> (SUBCLUSTERS + number) & 1:
        return ZERO
    return DATA if bitmap >> number & 1 else UNALLOCATED


def kind_of_all(bitmap: int, chosen: int) -> int:
    """How some subclusters (as `subclusters` gives them) are all stored; -1: not in one way."""
    zeroes = bitmap >> SUBCLUSTERS & chosen
    if zeroes:
        return ZERO if zeroes == chosen else -1
    data = bitmap & chosen
    return UNALLOCATED if not data else DATA if data == chosen else -1


def subclusters(first: int, end: int) -> int:
    """The subclusters from one up to another, as a bitmap says that they have data."""
    return ((1 << (end - first)) - 1) << first


def with_data(bitmap: int, chosen: int) -> int:
    """The same bitmap, but some subclusters (as `subclusters` gives them) have data."""
    return bitmap & ~(chosen << SUBCLUSTERS) | chosen


def with_zeroes(bitmap: int, chosen: int) -> int:
    """The same bitmap, but some subclusters read as zeroes."""
    return bitmap & ~chosen | chosen << SUBCLUSTERS


def without_data(bitmap: int) -> int:
    """The same bitmap, but no subcluster has data."""
    return bitmap & ~ALL_DATA


def data_and_zero(bitmap: int) -> int:
    """The subclusters of which a bitmap says both, which cannot be."""
    return bitmap & bitmap >> SUBCLUSTERS & ALL_DATA


# ---- L2 tables -------------------------------------------------------------------------------


def compressed(entry: int) -> bool:
    """Whether the cluster of an L2 entry is compressed."""
    return bool(entry & PACKED)


def place_of(entry: int) -> int:
    """The entry of a plain cluster with nothing but its place, and the flag that goes with it."""
    return entry & (OFFSET_MASK | COPIED)
