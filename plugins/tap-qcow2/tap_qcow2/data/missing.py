"""Clusters that lie wholly past the end of the file that should hold them.

Somebody cut the file, or the machine lost power before it had grown. QEMU reads zeroes there. Only
a server does so here too: a tool would carry on zeroes for content. A cluster that begins inside
the file may end past it: what is not there was never written, and reads as zeroes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tap_qcow2.data.diskmap import DiskMap
from tap_qcow2.data.unopened import UnopenedFile
from tap_qcow2.tables.l2tables import L2Tables
from tap_qcow2.tables.mapping import L2Map
from tapcore import SECTOR_SHIFT, ImageFormatError
from tapcore.clusters import DATA, Run

BytesThere: TypeAlias = Callable[[Run], int]
"""How much of a run of plain clusters is there, bytes."""


def refuse_to_hide(map: DiskMap, bytes_there: BytesThere) -> None:
    """Before a first change: the file grows by it, and holes would take the place of what is lost.

    Args:
        map: of the disk.
        bytes_there: of its runs, or a snapshot's.

    Raises:
        ImageFormatError: clusters are missing. Not for a server, which says so and goes on.
        OSError: a table cannot be read.
    """
    header, file = map.header, map.file
    table = header.refcount_table_offset + (header.refcount_table_clusters << header.cluster_bits)
    if table > file.size:  # zeroes would say that all clusters are free
        text = "its refcount table is cut by the end of the file: check --repair all mends it"
        raise ImageFormatError(text, errno=errno.EIO)
    if not _may_be_missing(map):
        return
    count, first = 0, None
    for run in missing_runs(map, bytes_there):
        if first is None:
            first = run
        count += -(-run.nb_sectors >> map.cluster_shift)
    if first is None:
        return
    many = "1 cluster that lies" if count == 1 else f"{count} clusters that lie"
    name = f"data file {map.data.path}" if map.elsewhere else "file"
    text = (
        f"has {many} past the end of its {name} "
        f"(the first at {first.sector << SECTOR_SHIFT} of the disk, {first.where:#x} of the file)"
    )
    if map.dd.options.missing == "zeroes":
        map.dd.td_state.losses.log_zeroed(map.dd.name, text)
        return
    way = "convert --salvage copies what is there"
    if not header.crypt_method:
        way += ", check --repair all makes the rest zeroes"
    raise ImageFormatError(f"{text}: it is damaged, and not written; {way}", errno=errno.EIO)


def make_holes_of_lost(map: DiskMap, bytes_there: BytesThere) -> None:
    """Before a server repairs the refcounts of an image that was not closed: what the file is too
    short for becomes a hole of it, as it reads anyway, and is counted.

    Args:
        map: of the disk.
        bytes_there: as for `refuse_to_hide`.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: as the system says.
    """
    if map.elsewhere:
        return
    file, bits = map.file, map.geometry.cluster_bits
    limit = file.size + 2 * (map.sectors << SECTOR_SHIFT) + (1 << 30)
    runs = missing_runs(map, bytes_there)
    ends = [run.where + (run.nb_sectors << SECTOR_SHIFT) for run in runs]
    end = max((end for end in ends if end <= limit), default=0)
    if not end:
        return
    text = "has clusters that lie past the end of its file"
    map.dd.td_state.losses.log_zeroed(map.dd.name, text)
    file.truncate_up(-(-end >> bits) << bits)


def _may_be_missing(map: DiskMap) -> bool:
    """A quick look: is anything counted, or allocated, past the end of the file?"""
    if isinstance(map.data, UnopenedFile):  # a new image, of which only the tables are made
        return False
    size, bits = map.data.size, map.geometry.cluster_bits
    if map.elsewhere:
        return size < map.sectors << SECTOR_SHIFT
    return map.metadata.refcounts.counted_from(size >> bits if map.encrypted else -(-size >> bits))


def missing_runs(map: DiskMap, bytes_there: BytesThere) -> Iterator[Run]:
    """Plain clusters that are missing: of the disk as it is, and of its snapshots.

    Args:
        map: of the disk.
        bytes_there: as for `refuse_to_hide`.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: a table cannot be read.
    """
    file, header = map.file, map.header
    yield from _missing(map, bytes_there)
    if not header.nb_snapshots:
        return
    from tap_qcow2.ondisk.snapshottable import read_snapshots, snapshot_l1

    for snapshot in read_snapshots(file, header):
        l1 = snapshot_l1(file, header, snapshot)
        tables = L2Tables(file, map.decoder, l1, snapshot.l1_offset, 0)
        sectors = (snapshot.disk_size or map.sectors << SECTOR_SHIFT) >> SECTOR_SHIFT
        yield from _missing(L2Map(file, map.decoder, tables, sectors), bytes_there)


def _missing(map: L2Map, bytes_there: BytesThere) -> Iterator[Run]:
    # a data file has each cluster at the disk's own offset: what lies below its end is there
    first = map.data.size >> SECTOR_SHIFT if map.data is not map.file else 0
    first &= ~map.geometry.sector_mask
    for run in map.runs(first, map.sectors):
        if run.kind != DATA:
            continue
        skip = bytes_there(run) >> SECTOR_SHIFT
        if skip < run.nb_sectors:
            where = run.where + (skip << SECTOR_SHIFT)
            yield Run(DATA, run.sector + skip, run.nb_sectors - skip, where)
