"""A part of a disk that a driver cannot read."""

from __future__ import annotations

import attrs


@attrs.frozen
class Loss:
    """A run of sectors whose content cannot be read.

    Attributes:
        image: the image of the chain that should hold it, as it was opened.
        sector: first sector of the disk.
        nb_sectors: how many.
        reason: what is wrong, without the image's name; where in the file it is, if that is known.
    """

    image: str
    sector: int
    nb_sectors: int
    reason: str

    @property
    def end(self) -> int:
        """First sector past it."""
        return self.sector + self.nb_sectors
