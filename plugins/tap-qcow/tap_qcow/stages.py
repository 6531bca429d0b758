"""What a write-back brings to the disk, in two stages; a crash leaves at worst unused space.

All changes of tables are made in memory, each when what it points to has been written. A write-back
takes what has changed and brings it to the disk, each stage safe (fdatasync) before the next thing
happens:

1. new L2 tables, which nothing points to yet; with them becomes safe what clients have written;
2. changed entries of L2 tables and of the L1 table.

What changes while a write-back runs is not in its stages, so nothing is published before its data
is safe.
"""

from __future__ import annotations

import attrs

from tap_qcow.entries import Entries, pack_entries
from tap_qcow.header import HEADER
from tap_qcow.mapping import ClusterMap
from tap_qcow.tables import BLOCK_SHIFT, Table
from tap_qcow.xen import XenExtension

Piece = tuple[int, bytes]
"""Offset in the file (bytes), and content."""


@attrs.define
class Stages:
    """What is written, and what it was taken from.

    Attributes:
        new: what stage 1 writes.
        changed: what stage 2 writes.
        tables: L2 tables, each with its dirty blocks, and whether it was fresh.
        l1: dirty blocks of the L1 table.
        extension: what blktap's extension becomes, before anything else; None: what it is.
        lost: -errno with which an fdatasync failed.
        reached: the last stage that has begun, from 1: something of it may be on disk.
    """

    new: list[Piece] = attrs.field(factory=list)
    changed: list[Piece] = attrs.field(factory=list)
    tables: list[tuple[Table, set[int], bool]] = attrs.field(factory=list)
    l1: set[int] = attrs.field(factory=set)
    extension: XenExtension | None = None
    lost: int = 0
    reached: int = 1


def take_stages(map: ClusterMap) -> Stages:
    """All that has changed so far; from now on it counts as unchanged.

    Args:
        map: of the image.

    Returns:
        The stages, to be handed to `end_stages`.
    """
    tables, stages = map.tables, Stages()
    if tables.dirty and map.header.xen is not None:
        stages.extension = map.header.xen.for_changes(little=map.little)
    if stages.extension is not None:
        stages.new.append((HEADER.size, stages.extension.pack()))
    for table in tables.dirty:
        if table.fresh:
            stages.new.append((table.offset, pack_entries(table.entries)))
        else:
            stages.changed += _blocks(table.entries, table.dirty, table.offset)
        stages.tables.append((table, table.dirty, table.fresh))
        table.dirty, table.fresh = set(), False
        table.pins += 1
    tables.dirty.clear()
    stages.changed += _blocks(tables.l1, tables.l1_dirty, map.header.l1_offset, little=map.little)
    stages.l1, tables.l1_dirty = tables.l1_dirty, set()
    return stages


def end_stages(map: ClusterMap, stages: Stages, res: int) -> None:
    """Stages are on the disk; or something failed, and all of it counts as changed again.

    Args:
        map: of the image.
        stages: as taken.
        res: 0 or -errno.
    """
    tables = map.tables
    for table, dirty, fresh in stages.tables:
        table.pins -= 1
        if res:
            table.dirty |= dirty
            table.fresh = fresh and stages.reached < 2  # else something may point to it
            tables.dirty.add(table)
    if res:
        tables.l1_dirty |= stages.l1
    elif stages.extension is not None:
        map.header.xen = stages.extension


def _blocks(entries: Entries, dirty: set[int], offset: int, *, little: bool = False) -> list[Piece]:
    """The dirty blocks of a table that lies at an offset (bytes); neighbours in one piece."""
    pieces: list[Piece] = []
    size = 1 << BLOCK_SHIFT
    numbers = sorted(dirty)
    while numbers:
        first = numbers[0]
        count = 1
        while count < len(numbers) and numbers[count] == first + count:
            count += 1
        part = entries[first * size : (first + count) * size]
        pieces.append((offset + first * size * 8, pack_entries(part, little=little)))
        del numbers[:count]
    return pieces
