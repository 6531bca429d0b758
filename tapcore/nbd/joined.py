"""Short writes of a batch of which each begins where the one before it ends: the disk gets one.

Whoever fills new clusters from start to end so gets space for several of them at once, and writes
each of them whole. The client hears of each write by itself. Where the one write fails, they go to
the disk one by one, and each is answered as if there had been no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tapcore.engine import WRITE, Engine
from tapcore.nbd import constants as nbd
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.receive import Chunk
from tapcore.nbd.requestparser import Asked, RequestParser

MOST: Final = 64 << 10
"""Bytes of a write that is joined. Its content is moved to that of the one before it, which takes a
fifth of the time at most that the write would take by itself."""


class JoinedRequest(NbdRequest):
    """Writes that are one for the engine.

    Attributes:
        asked: by the client; at least two.
    """

    __slots__ = ("asked",)

    asked: list[Asked]


class Joined:
    """Joins those of one client.

    Args:
        engine: of the disk.
        outstanding: what the client is owed.
        parser: of what it sends.
        in_lane: writes in place where that can be; returns whether it was.
        alone: called when one of them, with its content in a buffer, goes to the engine by itself;
            `done` of such a write.

    Attributes:
        end: of the last write that might have been joined: one that begins here goes on there.
    """

    __slots__ = ("_alone", "_engine", "_in_lane", "_outstanding", "_parser", "end")

    def __init__(
        self,
        engine: Engine,
        outstanding: Outstanding,
        parser: RequestParser,
        in_lane: Callable[[int, memoryview], bool],
        alone: Callable[[NbdRequest], None],
    ) -> None:
        self._engine = engine
        self._outstanding = outstanding
        self._parser = parser
        self._in_lane = in_lane
        self._alone = alone
        self.end = -1

    def take(self, cookie: int, offset: int, body: int, length: int) -> bool:
        """A write that was taken, with all that go on where it ends.

        Args:
            cookie: the client's name for it.
            offset: bytes.
            body: where its content begins in what was received.
            length: bytes.

        Returns:
            False where none does: nothing was done.
        """
        asked = [(cookie, offset, length)]
        if length > MOST or not self._follow(asked, body):
            return False
        rx, owed = self._parser.received, self._outstanding
        content = rx.view[body : body + self.end - offset]
        if self._in_lane(offset, content):
            for cookie, offset, length in asked:
                owed.replies.done(cookie, offset)
                if owed.meter is not None:
                    owed.meter.writes.append(length)
            return True
        req = JoinedRequest(WRITE, offset, len(content), content, self._done)
        req.asked = asked
        self._submit(req, rx.chunk, owed.taken, len(asked))
        return True

    def _follow(self, asked: list[Asked], body: int) -> bool:
        """Take those that follow the first, and move their content behind its content."""
        parser, most = self._parser, self._engine.size
        rx, head_size, known = parser.received, parser.head_size, parser.known_flags
        view, end, at_once = rx.view, self.end, self._outstanding.may_join
        to = body + asked[0][2]
        while len(asked) < at_once and (head := parser.first()) is not None:
            _, flags, command, cookie, offset, length = head
            start = rx.start + head_size
            stop = start + length
            if command != nbd.CMD_WRITE or offset != end or flags & known or stop > rx.end:
                break
            if not 0 < length <= MOST or end + length > most:
                break
            view[to : to + length] = view[start:stop]
            rx.start = stop
            to, end = to + length, end + length
            asked.append((cookie, offset, length))
        self.end = end
        return len(asked) > 1

    def _submit(self, req: NbdRequest, chunk: Chunk, taken: float, count: int) -> None:
        """Let the engine do what `count` writes want, with content that lies in a buffer."""
        owed = self._outstanding
        req.chunk, req.taken, req.lease = chunk, taken, None
        chunk.holds += 1
        owed.held += req.length
        owed.budget.room -= req.length
        owed.in_flight += count
        self._engine.submit(req)

    def _done(self, req: JoinedRequest) -> None:
        owed, chunk = self._outstanding, req.chunk
        assert chunk is not None
        if not req.status:
            meter, done = owed.meter, owed.replies.done
            for cookie, offset, length in req.asked:
                if meter is not None:
                    meter.driven.append((meter, WRITE, length, req.taken, req.queued, 0))
                done(cookie, offset)
        elif not owed.gone:
            self._one_by_one(req, chunk)
        owed.in_flight -= len(req.asked)
        owed.held -= req.length
        owed.budget.give_back(req.length)
        chunk.holds -= 1
        if not chunk.holds and not chunk.current:
            chunk.free()

    def _one_by_one(self, failed: JoinedRequest, chunk: Chunk) -> None:
        """Which of them fails is found out by themselves."""
        assert failed.buf is not None
        at = 0
        for cookie, offset, length in failed.asked:
            content = failed.buf[at : at + length]
            at += length
            req = NbdRequest(WRITE, offset, length, content, self._alone)
            req.cookie = cookie
            self._submit(req, chunk, failed.taken, 1)
