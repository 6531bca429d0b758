"""What a disk, and each image of its chain, holds: summed up cell by cell, to be drawn.

However many extents an image has, a picture has a bounded number of cells, and the extents are seen
once, one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, TypeAlias

import attrs

from tapcore.constants import SECTOR_SHIFT
from tapcore.disk import Disk
from tapcore.engine import MappedExtent
from tapcore.interface.extent import Extent
from tapcore.interface.models import DiskDriver
from tapcore.tools.progress import Progress

HOLE: Final = 0
ZERO: Final = 1
DATA: Final = 2
COMPRESSED: Final = 3

KINDS: Final = 4

SMALLEST_CELL: Final = 4096

SEVERAL_FILES: Final = "several files"

_TELL_EVERY: Final = 4096

Slot: TypeAlias = int
"""Kind and depth in one number: `depth * KINDS + kind`. A hole has depth 0: no image holds it."""

RunFacts: TypeAlias = tuple[int, int, Slot, str, int]
"""A run: start, length, slot, host file and offset in it. No class: there can be millions."""


def kind_of(slot: Slot) -> int:
    """HOLE, ZERO, DATA or COMPRESSED."""
    return slot % KINDS


def depth_of(slot: Slot) -> int:
    """Which image of the chain."""
    return slot // KINDS


@attrs.frozen
class Run:
    """Bytes that are stored in one way, exactly.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes.
        slot: kind and depth.
        filename: host file that holds them plainly; empty where none does.
        offset: where in it, bytes.
    """

    start: int
    length: int
    slot: Slot
    filename: str
    offset: int

    def joins(self, start: int, slot: Slot, filename: str, offset: int) -> bool:
        """Whether a run with these facts goes on where this one ends."""
        if (start, slot, filename) != (self.start + self.length, self.slot, self.filename):
            return False
        return not filename or offset == self.offset + self.length


@attrs.frozen
class Face:
    """What one cell looks like.

    A cell that holds any content shows the kind of content of which it has most, however little
    that is: a picture of a large disk would be empty otherwise. `quarters` says how much it is.

    Attributes:
        slot: kind and depth.
        quarters: how much of the cell is content, 1 to 4, rounded up; 0 for HOLE and ZERO.
    """

    slot: Slot
    quarters: int

    @property
    def thin(self) -> bool:
        """No more than half of the cell is content."""
        return 0 < self.quarters <= 2


class Row:
    """One row of a picture: an image by itself, or what the disk shows.

    Args:
        name: of the image, or of the disk.
        handle: of the image's driver.
        depth: of the image in its chain; None: the row of the disk.
        size: bytes.
        cell: bytes of a cell, a power of two.
        max_runs: keep up to so many runs as they are, besides the sums.
    """

    def __init__(
        self, name: str, handle: str, depth: int | None, size: int, cell: int, max_runs: int = 0
    ) -> None:
        self.name = name
        self.handle = handle
        self.depth = depth
        self.size = size
        self.cell = cell
        self.totals: dict[Slot, int] = {}
        self.runs: list[Run] | None = [] if max_runs else None
        """All runs exactly; None where there are too many."""
        self._max_runs = max_runs
        self._shift = cell.bit_length() - 1
        self._amounts: list[dict[Slot, int]] = [{} for _ in range(-(-size // cell))]
        self._files: dict[int, str] = {}

    def __len__(self) -> int:
        """Its cells."""
        return len(self._amounts)

    def add(self, start: int, length: int, slot: Slot, filename: str, offset: int) -> None:
        """Count a run; in order."""
        self.totals[slot] = self.totals.get(slot, 0) + length
        if self.runs is not None:
            self._keep(Run(start, length, slot, filename, offset))
        shift = self._shift
        first, end = start >> shift, start + length
        last = (end - 1) >> shift
        if first == last:  # as most runs are, where there are many
            self._count(first, length, slot, filename)
            return
        for index in range(first, last + 1):
            until = min(end, (index + 1) << shift)
            self._count(index, until - start, slot, filename)
            start = until

    def _count(self, index: int, length: int, slot: Slot, filename: str) -> None:
        amounts = self._amounts[index]
        amounts[slot] = amounts.get(slot, 0) + length
        if filename and self._files.setdefault(index, filename) != filename:
            self._files[index] = SEVERAL_FILES

    def _keep(self, run: Run) -> None:
        assert self.runs is not None
        last = self.runs[-1] if self.runs else None
        if last is not None and last.joins(run.start, run.slot, run.filename, run.offset):
            self.runs[-1] = attrs.evolve(last, length=last.length + run.length)
        elif len(self.runs) < self._max_runs:
            self.runs.append(run)
        else:
            self.runs = None

    def amounts(self, index: int) -> dict[Slot, int]:
        """Bytes of each slot in a cell."""
        return self._amounts[index]

    def file_of(self, index: int) -> str:
        """The host file that holds the plain data of a cell, `SEVERAL_FILES`, or ""."""
        return self._files.get(index, "")

    def length_of(self, index: int) -> int:
        """Bytes of a cell: the last one may be cut."""
        return min(self.cell, self.size - index * self.cell)

    def face(self, index: int) -> Face:
        """What a cell looks like."""
        amounts = self._amounts[index]
        content = {slot: count for slot, count in amounts.items() if kind_of(slot) >= DATA}
        if content:
            slot = max(content, key=lambda slot: (content[slot], -slot))
            return Face(slot, -(-4 * sum(content.values()) // self.length_of(index)))
        zero = sum(count for slot, count in amounts.items() if kind_of(slot) == ZERO)
        return Face(ZERO if 2 * zero >= self.length_of(index) else HOLE, 0)


@attrs.frozen
class ImageFacts:
    """What a picture tells of an image.

    Attributes:
        name: of it.
        handle: of its driver.
        size: bytes.
    """

    name: str
    handle: str
    size: int

    @classmethod
    def of(cls, dd: DiskDriver) -> ImageFacts:
        """Of one that is open."""
        return cls(dd.name, dd.drv.disk_type, dd.size << SECTOR_SHIFT)


def cell_size(size: int, cells: int) -> int:
    """Bytes of a cell, a power of two, so that a disk has no more than so many of them.

    Args:
        size: of the disk, bytes.
        cells: at least 1.
    """
    wanted = max(-(-size // cells), SMALLEST_CELL)
    return 1 << (wanted - 1).bit_length()


def disk_row(disk: Disk, cell: int, *, max_runs: int = 0, progress: Progress | None = None) -> Row:
    """What a disk shows, over its whole chain.

    Args:
        disk: open.
        cell: bytes of a cell, a power of two.
        max_runs: keep up to so many runs exactly.
        progress: told how far it is.
    """
    leaf = disk.state.disks
    row = Row(leaf.name, disk.handle, None, disk.size, cell, max_runs)
    alone = leaf.next is None  # then its own extents say all, for half of the time
    _fill(row, runs_of_image(leaf, 0) if alone else map(run_of_disk, disk.extents()), progress)
    return row


def image_row(
    dd: DiskDriver, depth: int, cell: int, *, max_runs: int = 0, progress: Progress | None = None
) -> Row:
    """What one image of a chain holds itself; a hole is what it leaves to its parent.

    Args:
        dd: the image.
        depth: in its chain.
        cell: bytes of a cell, a power of two.
        max_runs: keep up to so many runs exactly.
        progress: told how far it is.
    """
    row = Row(dd.name, dd.drv.disk_type, depth, dd.size << SECTOR_SHIFT, cell, max_runs)
    _fill(row, runs_of_image(dd, depth), progress)
    return row


def _fill(row: Row, runs: Iterator[RunFacts], progress: Progress | None) -> None:
    add = row.add
    for number, run in enumerate(runs):
        add(*run)
        if progress is not None and not number % _TELL_EVERY:
            progress(run[0], row.size)


_KIND_OF_EXTENT: Final = {"unallocated": HOLE, "zero": ZERO, "data": DATA, "compressed": COMPRESSED}


def runs_of_image(
    dd: DiskDriver, depth: int, sector: int = 0, count: int | None = None
) -> Iterator[RunFacts]:
    """What an image says itself.

    Args:
        dd: the image.
        depth: in its chain.
        sector: the first one that is asked for.
        count: sectors; None: all that follow.
    """
    if count is None:
        count = dd.size - sector
    if not count:
        return
    extent: Extent
    for extent in dd.drv.td_extents(dd, sector, count):
        kind = _KIND_OF_EXTENT[extent.kind]
        yield (
            extent.sector << SECTOR_SHIFT,
            extent.nb_sectors << SECTOR_SHIFT,
            depth * KINDS + kind if kind else HOLE,
            extent.filename if kind == DATA else "",
            extent.offset,
        )


def run_of_disk(extent: MappedExtent) -> RunFacts:
    """The same of what a whole chain shows."""
    kind = _KIND_OF_EXTENT[extent.kind] if extent.present else HOLE
    return (
        extent.start,
        extent.length,
        extent.depth * KINDS + kind if kind else HOLE,
        extent.filename if kind == DATA else "",
        extent.offset,
    )


def short_name(name: str) -> str:
    """The last part of an image's path."""
    return os.path.basename(name.rstrip("/")) or name
