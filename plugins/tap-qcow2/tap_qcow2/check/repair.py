"""What a repair does, and in which order. Each step leaves the image no worse than it was.

It is called with an image that stands for the real one: see `rehearsal`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tap_qcow2.check.analysis import Analysis, analyse
from tap_qcow2.check.l1sizes import cut_tables
from tap_qcow2.check.rebuild import FreeSpace, rebuild
from tap_qcow2.check.refcountrepair import write_flags, write_refcounts
from tap_qcow2.check.tablerepair import TableRepair
from tap_qcow2.ondisk import layout
from tap_qcow2.tables.copiedflags import set_flags

if TYPE_CHECKING:
    from tap_qcow2.check.walk import Walk
    from tap_qcow2.image import Image


def give_back_leaks(image: Image, found: Analysis) -> list[str]:
    """Give back what nothing refers to; returns what is to be said about it."""
    if found.tables_damaged or found.walk.hidden:
        return ["leaked clusters are kept: they may be what the damaged tables once led to"]
    write_refcounts(image, found, "down")
    image.metadata.reload()
    if found.report.result.corruptions:
        _fit_flags(image, found)
    else:
        write_flags(image, found.walk)  # what only a leak shared is the disk's own now
    return []


def repair_all(image: Image, found: Analysis) -> list[str]:
    """Repair what can be; returns what is to be said about it."""
    notes: list[str] = []
    if found.walk.bitmaps_damaged:
        _drop_bitmaps(image, notes)
        found = analyse(image)
    if cut_tables(image, found.walk, notes):
        found = analyse(image)
    if _lengthen_file(image, found.walk):
        found = analyse(image)
    if found.walk.hidden:
        return notes + raise_only(image, found)
    for _ in range(_ROUNDS):
        shared = found.comparison.too_low or found.comparison.overflow
        if not (found.tables_damaged or shared):
            break
        tables = TableRepair(image, found.walk, _space(image, found))
        tables.make_copies()
        if shared:
            tables.part_twins()
        _raise_refcounts(image, found, notes)
        tables.correct()
        if tables.lost:
            notes.append(f"{tables.lost} table entries led nowhere: what they held is lost")
        found = analyse(image)
    repair_refcounts(image, found, notes)
    if found.walk.snapshots_incomplete:
        from tap_qcow2.snapshots.transaction import rewrite_snapshots

        rewrite_snapshots(image, found.walk.snapshots)
    return notes


_ROUNDS: Final = 3
"""Tables that are reached only after others were corrected, may need it as well."""


def repair_refcounts(image: Image, found: Analysis, notes: list[str]) -> None:
    """Let refcounts and COPIED flags be what the references demand; the tables are sound."""
    rebuilt = _raise_refcounts(image, found, notes)
    write_flags(image, found.walk)
    if not rebuilt:
        write_refcounts(image, found, "exact")
    image.metadata.reload()


def _raise_refcounts(image: Image, found: Analysis, notes: list[str]) -> bool:
    """No refcount on disk is less than the references; whether all were made anew for that."""
    if not found.comparison.rebuild:
        write_refcounts(image, found, "up")
        return False
    rebuild(image, found.walk.counts, found.comparison, _space(image, found))
    image.metadata.reload()
    notes.append("the refcount structures were made anew")
    return True


def _space(image: Image, found: Analysis) -> FreeSpace:
    bits = image.cluster_bits
    claimed = [(cluster, cluster + 1) for cluster in found.walk.dangling]
    for table in found.walk.l1_tables:
        if table.size:
            last = (table.offset + table.size * 8 - 1) >> bits
            claimed.append((table.offset >> bits, last + 1))
    return FreeSpace(image, found.walk.counts, found.comparison.end, claimed)


def _drop_bitmaps(image: Image, notes: list[str]) -> None:
    """Persistent bitmaps are only a help for backups: without the bit, nobody relies on them."""
    image.header.autoclear &= ~layout.AUTOCLEAR_BITMAPS
    image.header.set_extension(layout.EXT_BITMAPS, None)
    image.header_writer.write()
    notes.append("the damaged bitmaps were dropped: the next backups have to be full ones")


def _lengthen_file(image: Image, walk: Walk) -> bool:
    """A table of which the end was cut off gets zeroes there."""
    size, length = image.file.size, image.geometry.cluster_size
    tables = [(table.offset, table.offset + table.size * 8) for table in walk.l1_tables]
    tables += [(offset, offset + length) for offset in walk.l2_tables if offset > size - length]
    for offset, end in tables:
        if offset < size < end:
            image.file.truncate_up(end)
    return image.file.size > size


def raise_only(image: Image, found: Analysis) -> list[str]:
    """Let no refcount be less than the references, and flags fit the refcounts: no more than that.

    What is counted without a reference may be what a damaged table led to. It stays counted.
    """
    if found.comparison.rebuild:
        return [
            "the refcount structures are not made anew: not all that refers to clusters is known"
        ]
    write_refcounts(image, found, "up")
    image.metadata.reload()
    _fit_flags(image, found)
    return ["what is counted without a reference is kept: it may be what the damaged tables led to"]


def _fit_flags(image: Image, found: Analysis) -> None:
    """Let COPIED flags be what the refcounts on disk demand, whether these are right or not."""
    walk, low = found.walk, image.geometry.cluster_size - 1
    active = [
        offset
        for offset, uses in walk.l2_tables.items()
        if uses.active and not offset & low and offset >> image.cluster_bits not in walk.crowded
    ]
    set_flags(image.metadata, walk.rules, sorted(active), image.refcounts)
    image.metadata.reload()
