"""Parts without tables: flat extents, extents of zeroes, and those that must not be used."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import ClassVar

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.parts.part import Part
from tapcore import DiskDriver, ImageFile
from tapcore.clusters import (
    ASK,
    DATA,
    PACKED,
    ZERO,
    ClusterMap,
    Clusters,
    DamagedTable,
    Picture,
    Place,
    Run,
    WritableClusters,
    WritableMap,
)


def flat_part(dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile) -> Part:
    """Content as it is, in a file.

    Args:
        dd: the disk.
        line: as the descriptor has it.
        start: its first sector on the disk.
        file: open.
    """
    mover = WritableClusters if line.access == "RW" and not file.read_only else Clusters
    map, unit = FlatMap(file, line), file.sector_size
    reason = "its description says that it must not be written"
    return Part(dd, line, start, map, mover, file, unit, reason)


class Unchanging(WritableMap):
    """A map that says for ever what it says."""

    def allocate(self, sector: int, count: int) -> Place:
        """Nothing can be added."""
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def link(self, sector: int, stop: int, where: int) -> None:
        """Nothing is ever added."""
        raise AssertionError

    def picture(self) -> Picture:
        """Nothing but content is to be made safe."""
        return Picture([], lambda failed: None)


class FlatMap(Unchanging):
    """Content as it is.

    Args:
        file: that it lies in.
        line: that says where.
    """

    shows_holes: ClassVar[bool] = True

    def __init__(self, file: ImageFile, line: ExtentLine) -> None:
        super().__init__(file, line.sectors, 512)
        self._offset = line.offset << 9

    def place(self, sector: int, nb_sectors: int) -> int:
        """Wherever it is."""
        return (sector << 9) + self._offset

    def place_to_write(self, sector: int, nb_sectors: int) -> int:
        """The same."""
        return (sector << 9) + self._offset

    def run(self, sector: int, stop: int) -> Run:
        """All of it is one."""
        return Run(DATA, sector, stop - sector, (sector << 9) + self._offset)


def zero_part(dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile) -> Part:
    """Nothing but zeroes, which cannot be written; `file` is the descriptor's."""
    reason = "it is an extent of zeroes, which cannot be written"
    return Part(dd, line, start, ZeroMap(file, line), WritableClusters, reason=reason)


class ZeroMap(Unchanging):
    """Zeroes, whatever a parent holds; arguments as of `FlatMap`."""

    zeroes_in_place: ClassVar[bool] = False

    def __init__(self, file: ImageFile, line: ExtentLine) -> None:
        super().__init__(file, line.sectors, 512)

    def run(self, sector: int, stop: int) -> Run:
        """All of it is one."""
        return Run(ZERO, sector, stop - sector)


def barred_part(dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile) -> Part:
    """Can neither be read nor written (NOACCESS); `file` is the descriptor's."""
    refusal = OSError(errno.EACCES, os.strerror(errno.EACCES))
    return unreadable_part(dd, line, start, file, refusal)


def unreadable_part(
    dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile, why: Exception
) -> Part:
    """Of which nothing can be read, for a reason; `file` is the descriptor's."""
    reason = "its description says that it must not be used"
    return Part(dd, line, start, NoMap(file, line, why), Clusters, reason=reason)


class NoMap(ClusterMap):
    """Nothing is known.

    Args:
        file: any.
        line: of the extent.
        why: is told of each read.
    """

    def __init__(self, file: ImageFile, line: ExtentLine, why: Exception) -> None:
        super().__init__(file, line.sectors, 512)
        self._why = why

    def place(self, sector: int, nb_sectors: int) -> int:
        """There is none."""
        return ASK

    def run(self, sector: int, stop: int) -> Run:
        """Fails."""
        raise self._why

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """Something, of which nothing is known."""
        yield Run(PACKED, sector, stop - sector)

    def missing(self, run: Run) -> bool:
        """Whether it ought to be there."""
        return isinstance(self._why, DamagedTable)
