"""A range that is too long to be trimmed or zeroed in one go: piece by piece, each in its turn.

Extended headers have lengths of 64 bits. Of a request for the whole of a large disk, a driver works
on a piece at a time, and between two pieces everybody else is served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tapcore.nbd import constants as nbd
from tapcore.nbd.exports import Export
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.requestparser import Command

PIECE: Final = 1 << 30
"""Bytes. What is longer is cut, at multiples of this."""


class LongRequest:
    """A TRIM or WRITE_ZEROES of any length.

    Args:
        export: the disk.
        outstanding: what the client is owed; it counts as one request in flight.
        op: DISCARD or ZERO.
        asked: what the client wants.
        later: called when a piece is done, and another one is to be begun with `go_on`.
    """

    def __init__(
        self,
        export: Export,
        outstanding: Outstanding,
        op: int,
        asked: Command,
        later: Callable[[LongRequest], object],
    ) -> None:
        self._export = export
        self._outstanding = outstanding
        self._op = op
        self._asked = asked
        self._later = later
        self._at = asked.offset
        self._taken = outstanding.taken
        outstanding.in_flight += 1

    def go_on(self) -> None:
        """Begin the next piece."""
        asked, offset = self._asked, self._at
        end = asked.offset + asked.length
        stop = min(end, (offset // PIECE + 1) * PIECE)
        self._at = stop
        req = NbdRequest(self._op, offset, stop - offset, None, self._done)
        # one flush at the end covers all pieces
        req.fua = bool(asked.flags & nbd.CMD_FLAG_FUA) and stop == end
        req.may_unmap = not asked.flags & nbd.CMD_FLAG_NO_HOLE
        req.fast = bool(asked.flags & nbd.CMD_FLAG_FAST_ZERO)
        self._export.before_giving_up()
        self._export.engine.submit(req)

    def _done(self, req: NbdRequest) -> None:
        owed, asked = self._outstanding, self._asked
        if not req.status and not owed.gone and self._at < asked.offset + asked.length:
            self._later(self)
            return
        owed.in_flight -= 1
        if owed.gone:
            return
        req.length, req.taken = asked.length, self._taken
        owed.driven(req)
        if req.status:
            owed.refuse_failed(req, asked.cookie, asked.offset)
        else:
            owed.replies.done(asked.cookie, asked.offset)

    def give_up(self) -> None:
        """The client has gone, between two pieces."""
        self._outstanding.given_up()
