"""Clusters that lie wholly past the end of the file that should hold them.

Somebody cut the file, or the machine lost power before it had grown. QEMU reads zeroes there. Only
a server does so here too: a tool would carry on zeroes for content. A cluster that begins inside
the file may end past it: what is not there was never written, and reads as zeroes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tap_qcow2.ondisk import bigendian
from tap_qcow2.tables import mapping
from tap_qcow2.tables.l2tables import L2Tables
from tapcore import SECTOR_SHIFT, ImageFormatError, content_missing

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def bytes_inside(image: Image, host: int, length: int) -> int:
    """How much of a run of plain clusters is there: in clusters that begin inside their file.

    Args:
        image: open.
        host: offset of the run, bytes.
        length: bytes.
    """
    file = image.data_file()
    end = _end_of_content(image, file.size)
    if host + length > end:  # or did somebody else, who may, make it longer since?
        end = _end_of_content(image, file.look_again())
    return min(max(end - host, 0), length)


def _end_of_content(image: Image, file_size: int) -> int:
    """Of the last cluster, with what it lacks; of an encrypted one, which was written whole, of the
    last sector: what it lacks would be decrypted to noise."""
    if image.header.crypt_method:
        return file_size >> SECTOR_SHIFT << SECTOR_SHIFT
    return -(-file_size >> image.cluster_bits) << image.cluster_bits


def read_past_end(image: Image, host: int, buf: memoryview, answer: tuple[Any, ...]) -> int:
    """For a read that ends past the end of the file.

    Args:
        image: open.
        host: where it begins, bytes.
        buf: the content's place; what is to be zeroes is filled.
        answer: its own; what is missing is noted for its sectors.

    Returns:
        Bytes that are still to be read, or -errno.
    """
    inside = bytes_inside(image, host, len(buf))
    if inside == len(buf):
        return inside
    _, dd, sector, nb_sectors, _, _ = answer
    skip = inside >> SECTOR_SHIFT
    reason = _where(image, host + inside)
    res = content_missing(dd, sector + skip, nb_sectors - skip, buf[inside:], reason)
    return res or inside


def _where(image: Image, host: int) -> str:
    file = "file" if image.data is image.file else f"data file {image.data_file().path}"
    return f"its cluster, at offset {host:#x}, lies past the end of the {file}"


def refuse_to_hide(image: Image) -> None:
    """Before a first change: the file grows by it, and holes would take the place of what is lost.

    Raises:
        ImageFormatError: clusters are missing. Not for a server, which says so and goes on.
        OSError: a table cannot be read.
    """
    header = image.header
    table = header.refcount_table_offset + (header.refcount_table_clusters << image.cluster_bits)
    if table > image.file.size:  # zeroes would say that all clusters are free
        text = "its refcount table is cut by the end of the file: check --repair all mends it"
        raise ImageFormatError(text, errno=errno.EIO)
    if not _may_be_missing(image):
        return
    count, first = 0, None
    for run in missing_runs(image):
        if first is None:
            first = run
        count += -(-run.nb_sectors >> image.cluster_shift)
    if first is None:
        return
    many = "1 cluster that lies" if count == 1 else f"{count} clusters that lie"
    file = "file" if image.data is image.file else f"data file {image.data_file().path}"
    text = (
        f"has {many} past the end of its {file} (the first at {first.sector << SECTOR_SHIFT} "
        f"of the disk, {first.where:#x} of the file)"
    )
    state = image.dd.td_state
    if image.dd.options.missing == "zeroes":
        if state is not None:
            state.losses.log_zeroed(image.dd.name, text)
        return
    way = "convert --salvage copies what is there"
    if not image.header.crypt_method:
        way += ", check --repair all makes the rest zeroes"
    raise ImageFormatError(f"{text}: it is damaged, and not written; {way}", errno=errno.EIO)


def make_holes_of_lost(image: Image) -> None:
    """Before a server repairs the refcounts of an image that was not closed: what the file is too
    short for becomes a hole of it, as it reads anyway, and is counted.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: as the system says.
    """
    if image.data is not image.file:
        return
    limit = image.file.size + 2 * image.size + (1 << 30)
    ends = [run.where + (run.nb_sectors << SECTOR_SHIFT) for run in missing_runs(image)]
    end = max((end for end in ends if end <= limit), default=0)
    if not end:
        return
    if image.dd.td_state is not None:
        text = "has clusters that lie past the end of its file"
        image.dd.td_state.losses.log_zeroed(image.dd.name, text)
    image.file.truncate_up(-(-end >> image.cluster_bits) << image.cluster_bits)


def _may_be_missing(image: Image) -> bool:
    """A quick look: is anything counted, or allocated, past the end of the file?"""
    if image.data is None:  # a new image, of which only the tables are made
        return False
    if image.data is not image.file:
        return image.data.size < image.size
    return image.refcounts.counted_from(
        _end_of_content(image, image.file.size) >> image.cluster_bits
    )


def missing_runs(image: Image) -> Iterator[mapping.Run]:
    """Plain clusters that are missing: of the disk as it is, and of its snapshots.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: a table cannot be read.
    """
    yield from _missing(image, image.tables, image.size)
    if not image.header.nb_snapshots:
        return
    from tap_qcow2.snapshots.table import check_snapshot_l1, read_snapshots

    for snapshot in read_snapshots(image):
        check_snapshot_l1(image, snapshot)
        l1 = bigendian.read(image.file, snapshot.l1_offset, snapshot.l1_size)
        tables = L2Tables(image.file, image.geometry, l1, snapshot.l1_offset, 0)
        yield from _missing(image, tables, snapshot.disk_size or image.size)


def _missing(image: Image, tables: L2Tables, size: int) -> Iterator[mapping.Run]:
    # a data file has each cluster at the disk's own offset: what lies below its end is there
    first = 0 if image.data is image.file else image.data_file().size >> SECTOR_SHIFT
    first &= ~image.sector_mask
    count = (size >> SECTOR_SHIFT) - first
    for run in mapping.runs_of(image, tables, first, count) if count > 0 else ():
        if run.kind != mapping.DATA:
            continue
        length = run.nb_sectors << SECTOR_SHIFT
        inside = bytes_inside(image, run.where, length)
        if inside < length:
            skip = inside >> SECTOR_SHIFT
            yield mapping.Run(
                mapping.DATA, run.sector + skip, run.nb_sectors - skip, run.where + inside
            )


def lies_past_end(image: Image, entry: int) -> bool:
    """Whether a compressed cluster begins past the end of the file."""
    offset, _ = image.geometry.compressed(entry)
    return offset >= image.file.size and offset >= image.file.look_again()
