"""Parts of a damaged disk whose rest is wanted: the reads that want what is not there are told."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.parts.part import Part
from tap_vmdk.parts.plain import FlatMap
from tapcore import DiskDriver, ImageFile, ImageFormatError, TapError
from tapcore.clusters import ASK, Clusters, DamagedTable, Run


def is_damage(exc: TapError) -> bool:
    """Whether an extent that cannot be opened is lost, and not just refused to us."""
    return isinstance(exc, ImageFormatError) or exc.errno in (errno.ENOENT, errno.EIO)


def cut_part(dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile) -> Part:
    """Content as it is, in a file that ends too early; arguments as of `flat_part`."""
    reason = "its file is shorter than its description says"
    return Part(dd, line, start, CutMap(file, line), Clusters, file, file.sector_size, reason)


class CutMap(FlatMap):
    """The beginning of an extent; arguments as of `FlatMap`."""

    def __init__(self, file: ImageFile, line: ExtentLine) -> None:
        super().__init__(file, line)
        self._there = max(file.size // 512 - line.offset, 0)

    def place(self, sector: int, nb_sectors: int) -> int:
        """Perhaps none."""
        return ASK

    def run(self, sector: int, stop: int) -> Run:
        """What is there."""
        if sector >= self._there:
            raise DamagedTable(f"its place lies past the end of its extent {self.file.path}")
        return super().run(sector, min(stop, self._there))

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """As of a whole file."""
        yield super().run(sector, stop)
