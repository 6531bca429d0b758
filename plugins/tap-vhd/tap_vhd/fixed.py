"""Fixed images: the disk, and a footer behind it."""

from __future__ import annotations

from collections.abc import Iterator

from tap_vhd.footers import Footers
from tapcore import SECTOR_SHIFT, DiskDriver, ImageFile, ImageFormatError
from tapcore.clusters import (
    DATA,
    ZERO,
    Picture,
    Place,
    Run,
    WritableClusters,
    WritableMap,
)

_CLUSTER = 4096


class FixedImage(WritableMap):
    """An open fixed image.

    Args:
        dd: the image in its chain.
        file: the image file.
        footers: of it.

    Attributes:
        footers: as given.
    """

    def __init__(self, dd: DiskDriver, file: ImageFile, footers: Footers) -> None:
        sectors = footers.footer.sectors
        if sectors << SECTOR_SHIFT > footers.at:
            raise ImageFormatError(
                f"is too short for its disk of {sectors << SECTOR_SHIFT} bytes: it was cut"
            )
        super().__init__(file, sectors, _CLUSTER)
        self.footers = footers
        self.clusters = WritableClusters(dd, self)

    def place(self, sector: int, nb_sectors: int) -> int:
        """All is where it always was."""
        return sector << SECTOR_SHIFT

    place_to_write = place

    def run(self, sector: int, stop: int) -> Run:
        """The same."""
        return Run(DATA, sector, stop - sector, sector << SECTOR_SHIFT)

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """Holes of the file are zeroes."""
        for each in self.file.extents(sector, stop - sector):
            kind = DATA if each.kind == "data" else ZERO
            yield Run(kind, each.sector, each.nb_sectors, each.sector << SECTOR_SHIFT)

    def allocate(self, sector: int, count: int) -> Place:
        """Never asked: every sector has its place."""
        raise AssertionError("a fixed image has no holes")

    def link(self, sector: int, stop: int, where: int) -> None:
        """Never asked, either."""
        raise AssertionError("a fixed image has no tables")

    def picture(self) -> Picture:
        """Nothing but content changes."""
        return Picture([], lambda failed: None)
