"""What a file holds, as extents of the disk."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from tapcore import Extent, ImageFile


def moved(file: ImageFile, sector: int, nb: int, place: int) -> Iterator[Extent]:
    """What a file holds at a place, as extents of the disk.

    Args:
        file: with plain content.
        sector: of the disk.
        nb: sectors.
        place: sector of the file.
    """
    for extent in file.extents(place, nb):
        yield attrs.evolve(extent, sector=sector + extent.sector - place)
