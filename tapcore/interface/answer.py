"""What a queued request is answered with, once it has left the short way of its hook's call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from tapcore.interface.models import DiskDriver, TdCallback

Then: TypeAlias = Callable[[int], int]
"""`then(res)`: what was queued has finished, with 0 or -errno.

Returns the number of requests that this completed, as `TdCallback` does."""

AnswerTuple: TypeAlias = tuple[TdCallback, DiskDriver, int, int, int, Any]
"""`(cb, dd, sector, nb_sectors, id, prv)`: what the queued methods of a file take instead of a
`Then`, for drivers that were written before there were any."""


class Answer:
    """The answer to one request, which a driver gives later, perhaps in pieces.

    It holds what a queue hook got besides the range. It is made where a request leaves the short
    way: one that is answered inside the call needs none, and calls `cb` itself.

    Args:
        cb: the hook's.
        dd: the hook's.
        id: the hook's.
        prv: the hook's.
    """

    __slots__ = ("cb", "dd", "id", "prv")

    def __init__(self, cb: TdCallback, dd: DiskDriver, id: int, prv: Any) -> None:
        self.cb = cb
        self.dd = dd
        self.id = id
        self.prv = prv

    def __call__(self, res: int, sector: int, nb_sectors: int) -> int:
        """Answer for a range.

        Args:
            res: 0, -errno, or `BLK_NOT_ALLOCATED` for a read of a hole.
            sector: first sector.
            nb_sectors: how many.

        Returns:
            How many requests that completed.
        """
        return self.cb(self.dd, res, sector, nb_sectors, self.id, self.prv)

    def over(self, sector: int, nb_sectors: int) -> Then:
        """The answer for a range, for who does not know of sectors: `then(res)`."""
        return answer_over(self.cb, self.dd, sector, nb_sectors, self.id, self.prv)


def answer_over(
    cb: TdCallback, dd: DiskDriver, sector: int, nb_sectors: int, id: int, prv: Any
) -> Then:
    """The same as `Answer(cb, dd, id, prv).over(sector, nb_sectors)`, in one step.

    For a hook that hands the whole request on: its own arguments stay plain variables, where a
    function inside the hook would make cells of them at each call, the quick ones too.
    """
    return lambda res: cb(dd, res, sector, nb_sectors, id, prv)


def as_then(then: Then | AnswerTuple) -> Then:
    """What a file's queued method was given, as a callable."""
    return answer_over(*then) if isinstance(then, tuple) else then
