"""What lies where in a whole chain: the extents of each image, laid over those of its parents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import attrs

from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import DriverError
from tapcore.interface.distrust import named, untrue
from tapcore.interface.extent import Extent
from tapcore.interface.models import DiskDriver

_KINDS: Final = frozenset({"data", "zero", "unallocated", "compressed"})


@attrs.frozen
class MappedExtent:
    """A run of a disk's bytes that are stored in one way, in one image of the chain.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes.
        depth: which image: 0 the child, 1 its parent, ...
        kind: "data", "zero" or "compressed".
        present: some image of the chain says what is here (even that it is zeroes).
        allocated: a "zero" run has space reserved in its host file.
        fd: descriptor of the host file that holds plain data, else None.
        filename: of the host file where the run has its place in one (a "zero" run may too).
        offset: where in it that is, bytes.
        missing: the content is not there: its place lies past the end of the host file.
    """

    start: int
    length: int
    depth: int
    kind: Literal["data", "zero", "compressed"]
    present: bool
    allocated: bool = False
    fd: int | None = None
    filename: str = ""
    offset: int = 0
    missing: bool = False

    @property
    def end(self) -> int:
        """First byte past the run."""
        return self.start + self.length

    def joins(self, other: MappedExtent, after: int | None = None) -> bool:
        """Whether `other`, which follows this one, is the same kind of run going on.

        Args:
            other: the run that follows.
            after: bytes from this one's start to its; None: this one's length.
        """
        if self._how_stored != other._how_stored:
            return False
        placed = self.fd is not None or bool(self.filename)
        after = self.length if after is None else after
        return not placed or self.offset + after == other.offset

    @property
    def _how_stored(self) -> tuple[object, ...]:
        return (
            self.depth,
            self.kind,
            self.present,
            self.allocated,
            self.fd,
            self.filename,
            self.missing,
        )


def chain_extents(dd: DiskDriver, offset: int, length: int) -> Iterator[MappedExtent]:
    """The runs of a range of a disk, in order, without gaps; neighbours of one kind are joined.

    Args:
        dd: the child.
        offset: bytes; widened outwards to whole sectors for the drivers, cut again here.
        length: bytes, inside the disk.

    Yields:
        Runs that cover exactly the range.
    """
    end = offset + length
    first = offset >> SECTOR_SHIFT
    count = ((end + 511) >> SECTOR_SHIFT) - first
    last: MappedExtent | None = None
    length = 0  # of `last` and what joins it
    for run in _layer(dd, 0, first, count):
        run = _cut(run, offset, end)
        if last is not None:
            if last.joins(run, length):
                length += run.length
                continue
            yield _long(last, length)
        last, length = run, run.length
    if last is not None:
        yield _long(last, length)


def _long(run: MappedExtent, length: int) -> MappedExtent:
    return run if run.length == length else attrs.evolve(run, length=length)


def _cut(run: MappedExtent, start: int, end: int) -> MappedExtent:
    if run.start >= start and run.end <= end:
        return run
    lo, hi = max(run.start, start), min(run.end, end)
    return attrs.evolve(run, start=lo, length=hi - lo, offset=run.offset + lo - run.start)


def _layer(dd: DiskDriver, depth: int, sector: int, nb_sectors: int) -> Iterator[MappedExtent]:
    for extent in _sound(dd, sector, sector + nb_sectors):
        if extent.kind != "unallocated":
            yield _mapped(extent, extent.kind, depth)
        elif dd.next is None:
            yield _mapped(extent, "zero", depth, present=False)
        else:
            yield from _below(dd.next, depth + 1, extent)


def _sound(dd: DiskDriver, sector: int, end: int) -> Iterator[Extent]:
    """What a driver says of its image, as far as it can be: what it leaves out would be lost.

    Raises:
        DriverError: the extents are not in order, have gaps, or do not cover the range exactly.
    """
    told: Any = dd.drv.td_extents(dd, sector, end - sector)
    if not hasattr(told, "__iter__"):
        raise untrue(dd.drv.disk_type, "td_extents", f"returned {named(told)}", dd.name)
    for extent in told:
        if not isinstance(extent, Extent) or not isinstance(extent.nb_sectors, int):
            raise _untrue(dd, f"{extent!r}, which is no Extent of whole sectors")
        fits = extent.sector == sector and 0 < extent.nb_sectors <= end - sector
        if not fits or extent.kind not in _KINDS:
            text = f"{extent.nb_sectors} sectors of {extent.kind!r} at sector {extent.sector}"
            raise _untrue(dd, f"{text}, where it was asked for sectors {sector} to {end - 1}")
        sector += extent.nb_sectors
        yield extent
    if sector != end:
        raise _untrue(dd, f"nothing of sectors {sector} to {end - 1}")


def _untrue(dd: DiskDriver, told: str) -> DriverError:
    return untrue(dd.drv.disk_type, "td_extents", f"tells of {told}", dd.name)


def _below(parent: DiskDriver, depth: int, hole: Extent) -> Iterator[MappedExtent]:
    """A hole of the child: the parent's content as far as it reaches, then zeroes."""
    held = max(min(hole.end, parent.size) - hole.sector, 0)
    if held:
        yield from _layer(parent, depth, hole.sector, held)
    if held < hole.nb_sectors:
        rest = Extent(hole.sector + held, hole.nb_sectors - held, "zero")
        yield _mapped(rest, "zero", depth - 1, present=False)


def _mapped(
    extent: Extent,
    kind: Literal["data", "zero", "compressed"],
    depth: int,
    *,
    present: bool = True,
) -> MappedExtent:
    return MappedExtent(
        start=extent.sector << SECTOR_SHIFT,
        length=extent.nb_sectors << SECTOR_SHIFT,
        depth=depth,
        kind=kind,
        present=present,
        allocated=extent.allocated,
        fd=extent.fd,
        filename=extent.filename,
        offset=extent.offset,
        missing=extent.missing,
    )
