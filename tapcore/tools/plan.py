"""What has to be copied, zeroed or compared, found from extents alone: nothing is read here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from tapcore.constants import SECTOR_SHIFT
from tapcore.disk import Disk
from tapcore.engine import MappedExtent
from tapcore.errors import open_error

How: TypeAlias = Literal["copy", "zero", "differ"]


class Job(NamedTuple):
    """A range of a disk and what is to be done with it.

    Attributes:
        start: bytes from the start of the disk.
        end: first byte past it.
        how: "copy" what the source holds, make it "zero", or copy it where it is found to "differ".
        extent: the source's, where the range is one run of plain data in a host file.
    """

    start: int
    end: int
    how: How
    extent: MappedExtent | None = None


def jobs_for_fresh(source: Disk, unit: int) -> Iterator[Job]:
    """For a target that is all zeroes: what the source holds.

    Args:
        source: open.
        unit: bytes in which the target is best written.
    """
    held = (
        Job(run.start, run.end, "copy", run if run.fd is not None else None)
        for run in source.extents()
        if run.kind != "zero"
    )
    return in_units(held, unit, source.size, "copy")


def jobs_for_used(source: Disk, unit: int) -> Iterator[Job]:
    """For a target that holds something already: all of it, copied or zeroed."""
    return in_units(map(_overwriting, source.extents()), unit, source.size, "copy")


def jobs_for_own(child: Disk) -> Iterator[Job]:
    """For the parent of `child`, which is open alone: what the child itself says, even zeroes."""
    return (_overwriting(run) for run in child.extents() if run.present)


def _overwriting(run: MappedExtent) -> Job:
    if run.kind == "zero":
        return Job(run.start, run.end, "zero")
    return Job(run.start, run.end, "copy", run if run.fd is not None else None)


def jobs_for_difference(source: Disk, other: Disk, unit: int) -> Iterator[Job]:
    """For a target of the source's size that reads as `other` does: what could differ."""
    jobs = _differences(source, other, 0, source.size)
    return in_units(jobs, unit, source.size, "differ")


def jobs_for_holes(child: Disk, parent: Disk | None) -> Iterator[Job]:
    """For a child that is to get another parent: holes of its own that would read differently.

    Args:
        child: open with the parents that it has.
        parent: the new one; None: the child is to stand alone.
    """
    for start, end in _holes(child):
        if parent is None:
            for run in child.extents(start, length=end - start):
                if run.kind != "zero":
                    yield Job(run.start, run.end, "copy")
        else:
            yield from _differences(child, parent, start, end)


def _holes(disk: Disk) -> Iterator[tuple[int, int]]:
    """What the child of a chain does not hold itself."""
    leaf = disk.state.disks
    try:
        for extent in leaf.drv.td_extents(leaf, 0, leaf.size) if leaf.size else ():
            if extent.kind == "unallocated":
                yield extent.sector << SECTOR_SHIFT, extent.end << SECTOR_SHIFT
    except Exception as exc:
        raise open_error(exc, leaf.name) from exc


def _differences(source: Disk, other: Disk, start: int, end: int) -> Iterator[Job]:
    common = max(min(end, other.size), start)
    for lo, hi, mine, theirs in pairs(source, other, start, common):
        if mine.kind == "zero":
            if theirs.kind != "zero":
                yield Job(lo, hi, "zero")
        elif not _same_place(mine, theirs):
            yield Job(lo, hi, "differ")
    for run in source.extents(common, length=end - common):
        if run.kind != "zero":
            yield Job(run.start, run.end, "differ")


def _same_place(one: MappedExtent, other: MappedExtent) -> bool:
    """Plain data in the same place of the same file: an image that both chains have."""
    if one.fd is None or other.fd is None or not one.filename:
        return False
    shift = other.start - one.start
    return one.filename == other.filename and one.offset + shift == other.offset


def pairs(
    one: Disk, other: Disk, start: int, end: int
) -> Iterator[tuple[int, int, MappedExtent, MappedExtent]]:
    """Ranges (start, end) in which neither disk's extent changes, over a range that both have."""
    if start == end:  # perhaps past the end of one of them
        return
    left, right = one.extents(start, length=end - start), other.extents(start, length=end - start)
    a, b = next(left, None), next(right, None)
    at = start
    while a is not None and b is not None:
        stop = min(a.end, b.end)
        yield at, stop, a, b
        at = stop
        if a.end == stop:
            a = next(left, None)
        if b.end == stop:
            b = next(right, None)


def in_units(jobs: Iterable[Job], unit: int, size: int, edges: How) -> Iterator[Job]:
    """Widen jobs to whole units of the target, so that none is written in parts.

    Args:
        jobs: in order, not overlapping; what lies between them may be read and written too.
        unit: bytes.
        size: of the disk, bytes; its last unit may be cut.
        edges: what is done with a unit of which only a part is to be zeroed.
    """
    done = 0
    for job in _split_zeroes(jobs, unit, size, edges):
        start = max(job.start // unit * unit, done)
        end = min(-(-job.end // unit) * unit, size)
        if start < end:
            exact = (start, end) == (job.start, job.end)
            yield job if exact else Job(start, end, job.how)
            done = end


def _split_zeroes(jobs: Iterable[Job], unit: int, size: int, edges: How) -> Iterator[Job]:
    """Of what is to be zeroed, whole units; its edges are to be read."""
    for job in jobs:
        if job.how != "zero":
            yield job
            continue
        start = -(-job.start // unit) * unit
        end = job.end if job.end == size else job.end // unit * unit
        if start >= end:
            yield Job(job.start, job.end, edges)
            continue
        if job.start < start:
            yield Job(job.start, start, edges)
        yield Job(start, end, "zero")
        if end < job.end:
            yield Job(end, job.end, edges)
