"""Clusters that lie wholly past the end of the file that should hold them.

Somebody cut the file, or the machine lost power before it had grown. QEMU reads zeroes there. Only
a server does so here too: a tool would carry on zeroes for content. A cluster that begins inside
the file may end past it: what is not there was never written, and reads as zeroes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.ondisk.entries import DATA
from tap_qcow2.tables.l2tables import L2Tables
from tap_qcow2.tables.mapping import Run, runs_of
from tapcore import SECTOR_SHIFT, ImageFormatError


def refuse_to_hide(clusters: Clusters, size: int) -> None:
    """Before a first change: the file grows by it, and holes would take the place of what is lost.

    Args:
        clusters: of the disk.
        size: of it, bytes.

    Raises:
        ImageFormatError: clusters are missing. Not for a server, which says so and goes on.
        OSError: a table cannot be read.
    """
    header, file = clusters.metadata.header, clusters.metadata.file
    table = header.refcount_table_offset + (header.refcount_table_clusters << header.cluster_bits)
    if table > file.size:  # zeroes would say that all clusters are free
        text = "its refcount table is cut by the end of the file: check --repair all mends it"
        raise ImageFormatError(text, errno=errno.EIO)
    if not _may_be_missing(clusters, size):
        return
    count, first = 0, None
    for run in missing_runs(clusters, size):
        if first is None:
            first = run
        count += -(-run.nb_sectors >> clusters.geometry.cluster_shift)
    if first is None:
        return
    many = "1 cluster that lies" if count == 1 else f"{count} clusters that lie"
    text = (
        f"has {many} past the end of its {clusters.host.name} "
        f"(the first at {first.sector << SECTOR_SHIFT} of the disk, {first.where:#x} of the file)"
    )
    state, options = clusters.dd.td_state, clusters.dd.options
    if options.missing == "zeroes":
        if state is not None:
            state.losses.log_zeroed(clusters.dd.name, text)
        return
    way = "convert --salvage copies what is there"
    if not header.crypt_method:
        way += ", check --repair all makes the rest zeroes"
    raise ImageFormatError(f"{text}: it is damaged, and not written; {way}", errno=errno.EIO)


def make_holes_of_lost(clusters: Clusters, size: int) -> None:
    """Before a server repairs the refcounts of an image that was not closed: what the file is too
    short for becomes a hole of it, as it reads anyway, and is counted.

    Args:
        clusters: of the disk.
        size: of it, bytes.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: as the system says.
    """
    if clusters.host.elsewhere:
        return
    file, bits = clusters.metadata.file, clusters.geometry.cluster_bits
    limit = file.size + 2 * size + (1 << 30)
    runs = missing_runs(clusters, size)
    ends = [run.where + (run.nb_sectors << SECTOR_SHIFT) for run in runs]
    end = max((end for end in ends if end <= limit), default=0)
    if not end:
        return
    if clusters.dd.td_state is not None:
        text = "has clusters that lie past the end of its file"
        clusters.dd.td_state.losses.log_zeroed(clusters.dd.name, text)
    file.truncate_up(-(-end >> bits) << bits)


def _may_be_missing(clusters: Clusters, size: int) -> bool:
    """A quick look: is anything counted, or allocated, past the end of the file?"""
    host, metadata = clusters.host, clusters.metadata
    if host.file is None:  # a new image, of which only the tables are made
        return False
    if host.elsewhere:
        return host.file.size < size
    end = host.end_of_content(metadata.file.size)
    return metadata.refcounts.counted_from(end >> clusters.geometry.cluster_bits)


def missing_runs(clusters: Clusters, size: int) -> Iterator[Run]:
    """Plain clusters that are missing: of the disk as it is, and of its snapshots.

    Args:
        clusters: of the disk.
        size: of it, bytes.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: a table cannot be read.
    """
    metadata = clusters.metadata
    file, header = metadata.file, metadata.header
    yield from _missing(clusters, metadata.tables, size)
    if not header.nb_snapshots:
        return
    from tap_qcow2.snapshots.table import read_snapshots, snapshot_l1

    for snapshot in read_snapshots(file, header):
        l1 = snapshot_l1(file, header, snapshot)
        tables = L2Tables(file, metadata.decoder, l1, snapshot.l1_offset, 0)
        yield from _missing(clusters, tables, snapshot.disk_size or size)


def _missing(clusters: Clusters, tables: L2Tables, size: int) -> Iterator[Run]:
    # a data file has each cluster at the disk's own offset: what lies below its end is there
    host = clusters.host
    first = host.opened().size >> SECTOR_SHIFT if host.elsewhere else 0
    first &= ~clusters.geometry.sector_mask
    count = (size >> SECTOR_SHIFT) - first
    for run in runs_of(tables, first, count) if count > 0 else ():
        if run.kind != DATA:
            continue
        length = run.nb_sectors << SECTOR_SHIFT
        inside = host.bytes_inside(run.where, length)
        if inside < length:
            skip = inside >> SECTOR_SHIFT
            yield Run(DATA, run.sector + skip, run.nb_sectors - skip, run.where + inside)


def lies_past_end(clusters: Clusters, entry: int) -> bool:
    """Whether a compressed cluster begins past the end of the file."""
    file = clusters.metadata.file
    offset, _ = clusters.decoder.compressed_range(entry)
    return offset >= file.size and offset >= file.look_again()
