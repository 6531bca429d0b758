"""Check and repair: what `qemu-img check [-r leaks|all]` does.

A check walks through everything that refers to host clusters, compares that with the refcounts, and
looks at the COPIED flags. A repair is made of steps, each crash-safe, with a fresh look in between.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import attrs

from tap_qcow2 import layout
from tap_qcow2.checking_counts import TooFarApartError
from tap_qcow2.checking_refcounts import Comparison
from tap_qcow2.checking_report import Report
from tap_qcow2.checking_walk import GivenUpError, Walk
from tap_qcow2.rebuilding import FreeSpace, rebuild
from tap_qcow2.repairing import TableRepair, reload_tables, write_flags, write_refcounts
from tapcore import CheckResult, ImageFormatError, ImageOpenError, describe_error

if TYPE_CHECKING:
    from tap_qcow2.image import Image


@attrs.define
class Analysis:
    """A look at all of an image.

    Attributes:
        report: what was found.
        walk: the references.
        comparison: the refcounts beside them.
    """

    report: Report
    walk: Walk
    comparison: Comparison

    @property
    def clean(self) -> bool:
        """There is nothing to be said against the image."""
        found = self.report.result
        return not (found.leaks or found.corruptions or found.check_errors)

    @property
    def tables_damaged(self) -> bool:
        """L1 or L2 tables are not what they should be, besides their COPIED flags."""
        walk = self.walk
        return bool(walk.l1_damaged or walk.l2_damaged or walk.crowded)


def analyse(image: Image) -> Analysis:
    """Look at an image: nothing is changed, and nothing may be waiting to be written."""
    report = Report()
    walk = Walk(image, report)
    comparison = Comparison(image, walk, report)
    report.result.total_clusters = image.geometry.clusters(image.header.size)
    try:
        walk.run()
        comparison.count_structures()
        comparison.compare()
        comparison.check_flags()
        report.result.image_end_offset = comparison.end << image.cluster_bits
    except ImageFormatError as exc:
        report.failed(f"it {exc.message}")
    except OSError as exc:
        report.failed(f"a table cannot be read: {describe_error(exc)}")
    except GivenUpError:
        report.failed("its tables overlap so much that they cannot be checked in bounded time")
    except TooFarApartError:
        report.failed("it refers to places so far apart that checking it would take all memory")
    return Analysis(report, walk, comparison)


def check(image: Image, repair: str) -> CheckResult:
    """Check an image, and repair it.

    Args:
        image: open, for writing where it is to be repaired, with nothing in flight.
        repair: "", "leaks" or "all".

    Raises:
        TapError, OSError: a repair failed in the middle; it can be done again.
    """
    image.clean()
    first = analyse(image)
    result = first.report.result
    result.messages = first.report.all_messages()
    if not repair:
        return result
    if result.check_errors:
        result.messages.append("nothing was repaired, since not all could be checked")
        return result
    last = first
    if not first.clean or first.comparison.stale:
        notes = _repair_leaks(image, first) if repair == "leaks" else _repair_all(image, first)
        last = analyse(image)
        result = _after_repair(first, last, notes)
    if not (last.report.result.corruptions or last.report.result.check_errors):
        _mark_clean(image)
    return result


def _after_repair(first: Analysis, last: Analysis, notes: list[str]) -> CheckResult:
    before, result = first.report.result, last.report.result
    result.leaks_fixed = max(before.leaks - result.leaks, 0)
    result.corruptions_fixed = max(before.corruptions - result.corruptions, 0)
    result.messages = [*first.report.all_messages(), *notes]
    if last.report.messages:
        result.messages += ["after the repair:", *last.report.all_messages()]
    return result


def _mark_clean(image: Image) -> None:
    header = image.header
    if header.dirty or header.corrupt:
        header.incompatible &= ~(layout.INCOMPAT_DIRTY | layout.INCOMPAT_CORRUPT)
        image.write_header_fields()
    image.broken = False


def _repair_leaks(image: Image, found: Analysis) -> list[str]:
    """Give back what nothing refers to; returns what is to be said about it."""
    if found.tables_damaged:
        return ["leaked clusters are kept: they may be what the damaged tables once led to"]
    write_refcounts(image, found, "down")
    reload_tables(image)
    return []


def _repair_all(image: Image, found: Analysis) -> list[str]:
    """Repair what can be; returns what is to be said about it."""
    notes: list[str] = []
    if found.walk.bitmaps_damaged:
        _drop_bitmaps(image, notes)
        found = analyse(image)
    if _lengthen_file(image, found.walk):
        found = analyse(image)
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
    _repair_refcounts(image, found, notes)
    if found.walk.snapshots_incomplete:
        from tap_qcow2.snapshots import rewrite_snapshots

        rewrite_snapshots(image, found.walk.snapshots)
    return notes


_ROUNDS = 3
"""Tables that are reached only after others were corrected, may need it as well."""


def _repair_refcounts(image: Image, found: Analysis, notes: list[str]) -> None:
    """Let refcounts and COPIED flags be what the references demand; the tables are sound."""
    rebuilt = _raise_refcounts(image, found, notes)
    write_flags(image, found.walk)
    if not rebuilt:
        write_refcounts(image, found, "exact")
    reload_tables(image)


def _raise_refcounts(image: Image, found: Analysis, notes: list[str]) -> bool:
    """No refcount on disk is less than the references; whether all were made anew for that."""
    if not found.comparison.rebuild:
        write_refcounts(image, found, "up")
        return False
    rebuild(image, found.walk.counts, found.comparison, _space(image, found))
    reload_tables(image)
    notes.append("the refcount structures were made anew")
    return True


def _space(image: Image, found: Analysis) -> FreeSpace:
    return FreeSpace(image, found.walk.counts, found.comparison.end)


def _drop_bitmaps(image: Image, notes: list[str]) -> None:
    """Persistent bitmaps are only a help for backups: without the bit, nobody relies on them."""
    image.header.autoclear &= ~layout.AUTOCLEAR_BITMAPS
    image.header.set_extension(layout.EXT_BITMAPS, None)
    image.write_header()
    notes.append("the damaged bitmaps were dropped: the next backups have to be full ones")


def _lengthen_file(image: Image, walk: Walk) -> bool:
    """An L1 table of which the end was cut off gets zeroes there."""
    size = image.file.size
    for table in walk.l1_tables:
        if table.offset < size < table.offset + table.size * 8:
            image.file.truncate_up(table.offset + table.size * 8)
    return image.file.size > size


def repair_dirty(image: Image) -> None:
    """Put refcounts and COPIED flags right after a crash, and clear the dirty bit.

    Args:
        image: open for writing, nothing written yet.

    Raises:
        ImageOpenError: it is damaged in another way too.
        OSError: as the system says.
    """
    found = analyse(image)
    if found.report.result.check_errors or found.tables_damaged or found.comparison.overflow:
        raise ImageOpenError(
            "was not closed, and is damaged: check --repair all, or open it read-only",
            errno=errno.EROFS,
        )
    _repair_refcounts(image, found, [])
    image.header.incompatible &= ~layout.INCOMPAT_DIRTY
    image.write_header_fields()
