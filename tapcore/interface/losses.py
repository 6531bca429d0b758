"""Content that cannot be read: what drivers say of it, for whoever has to tell a person.

A callback carries an errno, which says neither what is wrong nor where. So a driver that knows
notes it here, with the disk, before it answers; who reports the failed request finds it.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import IOFailedError, LostContentError

if TYPE_CHECKING:
    from tapcore.interface.models import DiskDriver, TdState

log = logging.getLogger(__name__)

_MOST: Final = 4096
"""Losses that are remembered: more than the reads can find that a tool has under way."""

_MOST_LINES: Final = 8
"""Lines about damage that are logged for one disk."""


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


class Losses:
    """Those of one disk, the last ones.

    Attributes:
        count: how many were noted ever.
    """

    __slots__ = ("_found", "_lines", "_zeroed", "count")

    def __init__(self) -> None:
        self.count = 0
        self._found: deque[Loss] = deque(maxlen=_MOST)
        self._zeroed: set[str] = set()
        self._lines: set[tuple[str, str]] = set()

    def note(self, loss: Loss) -> None:
        """Remember a loss."""
        self.count += 1
        self._found.append(loss)

    def among(self, sector: int, end: int, *, since: int = 0) -> list[Loss]:
        """Losses inside a range of sectors, in order.

        Args:
            sector: first sector.
            end: first sector past the range.
            since: `count` as it was; only what was noted after that counts.
        """
        new = min(self.count - since, len(self._found))
        latest = (self._found[-1 - number] for number in range(new))
        inside = (loss for loss in latest if loss.sector < end and sector < loss.end)
        return sorted(inside, key=lambda loss: loss.sector)

    def log_zeroed(self, image: str, reason: str) -> None:
        """Once for each image: zeroes are answered for content that is missing."""
        if image not in self._zeroed:
            self._zeroed.add(image)
            log.warning("%s: %s; what is missing reads as zeroes (check it)", image, reason)

    def log_damage(self, image: str, reason: str) -> None:
        """Once for each image and reason, of a number that is bounded."""
        if (image, reason) not in self._lines and len(self._lines) < _MOST_LINES:
            self._lines.add((image, reason))
            log.error("%s: %s", image, reason)


def content_missing(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, reason: str
) -> int:
    """For a driver: the place of content lies past the end of its file.

    Args:
        dd: the image.
        sector: first sector.
        nb_sectors: how many.
        buf: the content's place; filled with zeroes where these are to be answered.
        reason: one line without the image's name, with the place in the file.

    Returns:
        What to answer: 0, or -EIO.
    """
    if dd.options.missing == "zeroes":
        buf[:] = bytes(len(buf))
        if dd.td_state is not None:
            dd.td_state.losses.log_zeroed(dd.name, reason)
        return 0
    return content_damaged(dd, sector, nb_sectors, reason)


def content_damaged(dd: DiskDriver, sector: int, nb_sectors: int, reason: str) -> int:
    """For a driver: a range cannot be read, or written, because the image is damaged.

    Args:
        dd: the image.
        sector: first sector.
        nb_sectors: how many.
        reason: one line without the image's name.

    Returns:
        -EIO, to be answered.
    """
    if dd.td_state is not None:
        losses = dd.td_state.losses
        losses.note(Loss(dd.name, sector, nb_sectors, reason))
        if dd.options.missing == "zeroes":  # a server: nobody else tells
            losses.log_damage(dd.name, reason)
    return -errno.EIO


def known_failure(
    state: TdState, what: str, start: int, end: int, status: int, *, since: int
) -> IOFailedError | None:
    """What to raise for a failed request where a driver said why: the image, place and reason.

    Args:
        state: of the disk.
        what: "read", "write", ...
        start: of the request, bytes.
        end: of the request, bytes.
        status: -errno.
        since: `losses.count` as it was before the request.
    """
    last = max(-(-end >> SECTOR_SHIFT), (start >> SECTOR_SHIFT) + 1)
    for loss in state.losses.among(start >> SECTOR_SHIFT, last, since=since):
        text = f"{what} failed at {max(loss.sector << SECTOR_SHIFT, start)}: {loss.reason}"
        error = LostContentError if what == "read" else IOFailedError
        return error(text, image=loss.image, errno=-status)
    return None
