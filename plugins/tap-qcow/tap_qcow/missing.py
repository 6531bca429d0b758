"""Clusters that lie past the end of the file: somebody cut it, or it never grew so far.

The format counts nothing, and new clusters go to the end of the file: just there where what is lost
should lie. So all tables are looked at before the first change.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from tap_qcow import words
from tap_qcow.mapping import DEFLATED, MISSING, run_at
from tap_qcow.tables import Table
from tapcore import SECTOR_SHIFT, EmptyTables, ImageFormatError, TableVisits, TapError

if TYPE_CHECKING:
    from tap_qcow.image import Image
    from tap_qcow.words import Words


def make_room_for_lost(image: Image) -> None:
    """Refuse to write an image that has lost clusters; a server goes on with holes in their place.

    Raises:
        ImageFormatError: clusters are missing; not for a server.
        OSError: a table cannot be read, or the file not be made longer.
    """
    count, end, first = 0, 0, None
    # where all of the disk and its tables would not reach nothing ever was, nor will be
    limit = image.file.size + 2 * (image.sectors << SECTOR_SHIFT) + (1 << 20)
    for lost in _missing(image):
        if lost.end > limit:
            continue
        first = first or lost
        count += lost.clusters
        end = max(end, lost.end)
    if first is None:
        return
    many = "1 cluster that lies" if count == 1 else f"{count} clusters that lie"
    text = (
        f"has {many} past the end of its file (the first at {first.sector << SECTOR_SHIFT} of the "
        f"disk, {first.where:#x} of the file)"
    )
    if image.dd.options.missing == "error":
        raise ImageFormatError(
            f"{text}: it is damaged, and not written; convert --salvage copies what is there",
            errno=errno.EIO,
        )
    if image.dd.td_state is not None:
        image.dd.td_state.losses.log_zeroed(image.dd.name, text)
    image.file.truncate_up(end)
    image.end = max(image.end, end)


@attrs.frozen
class _Lost:
    """What lies past the end of the file: a run of clusters, or a table with all that it maps.

    Attributes:
        sector: first one of the disk that is lost.
        clusters: how many are.
        where: in the file, bytes.
        end: first byte past that.
    """

    sector: int
    clusters: int
    where: int
    end: int


def _missing(image: Image) -> Iterator[_Lost]:
    geometry = image.geometry
    size = geometry.table_bytes
    visits, empty = TableVisits(size), EmptyTables(image.file, size)
    for index, offset in enumerate(image.tables.l1):
        if not offset or not _can_be(image, offset):
            continue
        if not image.tables.has(index) and empty.holds(offset):
            continue
        visits.visit(offset)
        entries = _entries(image, index, offset)
        sector = index << geometry.table_shift
        if entries is None:
            yield _Lost(sector, geometry.entry_mask + 1, offset, offset + geometry.table_bytes)
        elif max(entries, default=0) >= image.file.size:
            stop = min((index + 1) << geometry.table_shift, image.sectors)
            yield from _in_table(image, Table(index, offset, entries), sector, stop)


def _can_be(image: Image, offset: int) -> bool:
    """Whether a table could lie there at all; through others nothing is written."""
    try:
        image.check_run(offset, image.geometry.table_bytes)
    except ImageFormatError:
        return False
    return True


def _in_table(image: Image, table: Table, sector: int, stop: int) -> Iterator[_Lost]:
    shift = image.geometry.cluster_shift
    while sector < stop:
        try:
            run = run_at(image, table, sector, stop)
        except TapError:  # impossible in another way, and refused to whoever wants it
            sector = ((sector >> shift) + 1) << shift
            continue
        length = run.nb_sectors << SECTOR_SHIFT
        if run.kind == MISSING:
            yield _Lost(sector, -(-run.nb_sectors >> shift), run.where, run.where + length)
        elif run.kind == DEFLATED:
            where, size = image.geometry.compressed(run.where)
            if where >= image.file.size:
                yield _Lost(sector, 1, where, where + size)
        sector += run.nb_sectors


def _entries(image: Image, index: int, offset: int) -> Words | None:
    """Of a table, past the cache; None for one that is not wholly in the file."""
    table = image.tables.get(index)
    if table is not None:
        return table.entries
    size = image.geometry.table_bytes
    if offset + size > image.file.size:
        return None
    return words.from_bytes(image.file.read_metadata(offset, size))
