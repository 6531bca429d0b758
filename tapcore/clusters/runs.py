"""Runs: sectors of an image that are stored in one way, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from tapcore.errors import ImageFormatError
from tapcore.interface.places import ASK as ASK
from tapcore.interface.places import NOWHERE as NOWHERE

HOLE: Final = 0
ZERO: Final = 1
DATA: Final = 2
PACKED: Final = 3

AnswerPart: TypeAlias = Callable[[int, int, int], int]
"""`answer(res, sector, nb_sectors)`, for a part of a request; returns requests finished."""


class Run(NamedTuple):
    """Sectors that are stored in one way.

    Attributes:
        kind: HOLE (the parent's content, or zeroes), ZERO, DATA (plain content) or PACKED
            (compressed; then inside one cluster).
        sector: the first one.
        nb_sectors: how many.
        where: DATA: host offset of the first sector, bytes; those that follow lie behind it. HOLE
            and ZERO: the same of a place that is kept for them, or NOWHERE. PACKED: a token, which
            names this content among all that the image ever had at once.
        own: the place is nobody else's (a snapshot's), and may be written.
    """

    kind: int
    sector: int
    nb_sectors: int
    where: int = NOWHERE
    own: bool = True

    @property
    def end(self) -> int:
        """First sector past the run."""
        return self.sector + self.nb_sectors

    def upto(self, end: int) -> Run:
        """The part of it that ends before a sector."""
        return self if self.end <= end else self._replace(nb_sectors=end - self.sector)


class DamagedTable(ImageFormatError):
    """A table that cannot be where the image says: nothing that it maps can be told.

    What is wrong with one entry concerns the rest of its cluster alone, and is raised as a plain
    ImageFormatError.
    """


class MissingContent(ImageFormatError):
    """Content lies past the end of its file, and the format says so in words of its own.

    For a place of plain content there is no need: it is looked at before it is read.
    """
