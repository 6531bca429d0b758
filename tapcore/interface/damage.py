"""Content that cannot be read: what drivers say of it, for whoever has to tell a person.

A callback carries an errno, which says neither what is wrong nor where. So a driver that knows
notes it with the disk, before it answers; who reports the failed request finds it.
"""

from __future__ import annotations

import errno

from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import IOFailedError, LostContentError
from tapcore.interface.loss import Loss
from tapcore.interface.models import DiskDriver, TdState


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
