"""Ranges that are trimmed or zeroed: long ones piece by piece, short ones of a batch together.

Extended headers have lengths of 64 bits. Of a request for the whole of a large disk, a driver works
on a piece at a time, and between two pieces everybody else is served. Requests of a batch of which
each begins where the one before it ends are one range; where that fails, each is asked for again by
itself, and answered as if there had been no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tapcore.nbd import constants as nbd
from tapcore.nbd.exports import Export
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.requestparser import Asked

PIECE: Final = 1 << 30
"""Bytes. What is longer is cut, at multiples of this."""


class LongRequest:
    """A TRIM or WRITE_ZEROES of any length, or several that follow each other.

    Args:
        export: the disk.
        outstanding: what the client is owed.
        op: DISCARD or ZERO.
        flags: of each of them.
        asked: what the client wants.
        later: called when a piece is done, and another one is to be begun with `go_on`.
    """

    def __init__(
        self,
        export: Export,
        outstanding: Outstanding,
        op: int,
        flags: int,
        asked: list[Asked],
        later: Callable[[LongRequest], object],
    ) -> None:
        self._export = export
        self._outstanding = outstanding
        self._op = op
        self._flags = flags
        self._asked = asked
        self._later = later
        self._at = asked[0][1]
        self._end = asked[-1][1] + asked[-1][2]
        self._taken = outstanding.taken
        outstanding.in_flight += len(asked)

    def go_on(self) -> None:
        """Begin the next piece."""
        flags, offset, end = self._flags, self._at, self._end
        self._at = stop = min(end, (offset // PIECE + 1) * PIECE)
        req = NbdRequest(self._op, offset, stop - offset, None, self._done)
        # one flush at the end covers all pieces
        req.fua = bool(flags & nbd.CMD_FLAG_FUA) and stop == end
        req.may_unmap = not flags & nbd.CMD_FLAG_NO_HOLE
        req.fast = bool(flags & nbd.CMD_FLAG_FAST_ZERO)
        self._export.before_giving_up()
        self._export.engine.submit(req)

    def _done(self, req: NbdRequest) -> None:
        owed, asked = self._outstanding, self._asked
        if not req.status and not owed.gone and self._at < self._end:
            self._later(self)
            return
        if req.status and len(asked) > 1 and not owed.gone:
            self._one_by_one()
            return
        owed.in_flight -= len(asked)
        if owed.gone:
            return
        req.taken = self._taken
        for cookie, offset, length in asked:
            req.length = length
            owed.driven(req)
            if req.status:
                owed.refuse_failed(req, cookie, offset)
            else:
                owed.replies.done(cookie, offset)

    def _one_by_one(self) -> None:
        """They have failed together."""
        export, owed = self._export, self._outstanding
        for each in self._asked:
            LongRequest(export, owed, self._op, self._flags, [each], self._later).go_on()
        owed.in_flight -= len(self._asked)

    def give_up(self) -> None:
        """The client has gone, between two pieces."""
        for _ in self._asked:
            self._outstanding.given_up()
