"""Writes: in place where they have their place, else through the engine, long ones as they come."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from tapcore.buffers import POOL
from tapcore.engine import WRITE
from tapcore.files.windows import MOST_WRITTEN
from tapcore.nbd import constants as nbd
from tapcore.nbd.exports import Export
from tapcore.nbd.joined import Joined
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.requestparser import RequestParser
from tapcore.nbd.streaming import PIECE, PLACED_PIECE, StreamedWrite
from tapcore.nbd.together import Together

if TYPE_CHECKING:
    from tapcore.nbd.direct import DirectRequests

MAX_SKIPPED: Final = 64 << 20
"""A write longer than this is not even skipped: the connection is closed."""

OUT_OF_LANE: Final = 7
"""So many writes go to the engine behind one that was not in the lane: who fills new clusters goes
on doing so, and need not be looked for twice."""

STREAM_MIN: Final = 128 << 10
"""Writes from this size on are begun before all of their data has arrived."""

WIDE: Final = 1 << 20
"""Bytes of a receive buffer into which several long writes go at once."""

_WIDE_STREAM_MIN: Final = 768 << 10

_ROOM_LEFT: Final = 128 << 20
"""Bytes of memory for all clients that are left, at least, when one takes such a buffer."""

_UNKNOWN: Final = ~nbd.CMD_FLAG_FUA


class Writes:
    """Carries out the writes of one client.

    Args:
        export: the disk.
        outstanding: what the client is owed.
        parser: of what it sends.
        read_only: it was told that it may not write.
        freed: called when memory was given back.

    Attributes:
        direct: takes those that go past the page cache; None: none do.
        stream: the write whose data is still on its way.
        stream_min: a write from this size on (bytes) is begun before all of its data has arrived.
        wide: several long ones go into the receive buffer at once.
        together: those that are done when the batch is parsed, or before anything that is not a
            read in the lane: see `write_together`.
    """

    __slots__ = (
        "_engine",
        "_freed",
        "_joined",
        "_lane_write",
        "_moved",
        "_out_of_lane",
        "_outstanding",
        "_parser",
        "_read_only",
        "_received",
        "_replies",
        "direct",
        "stream",
        "stream_min",
        "together",
        "wide",
    )

    def __init__(
        self,
        export: Export,
        outstanding: Outstanding,
        parser: RequestParser,
        *,
        read_only: bool,
        freed: Callable[[], object],
    ) -> None:
        self._engine = export.engine
        self._outstanding = outstanding
        self._replies = outstanding.replies
        self._parser = parser
        self._received = parser.received
        self._read_only = read_only
        self._freed = freed
        self._lane_write: Callable[[int, memoryview], int | None] | None = None
        meter = outstanding.meter
        self._moved = None if meter is None else meter.writes.append
        self._out_of_lane = 0
        self.direct: DirectRequests | None = None
        self.together = Together(export.engine.lane, parser.received)
        self._joined = Joined(export.engine, outstanding, parser, self.in_lane, self._done)
        self.stream: StreamedWrite | None = None
        self.stream_min = STREAM_MIN
        self.wide = False
        self.follow()

    def follow(self) -> None:
        """Take over whether the images can be written in place; they may be others now."""
        lane = self._engine.lane
        self._lane_write = lane.write if lane.writes else None

    def put_off(self) -> None:
        """Put off the small plain WRITEs with which what was received begins, as far as that goes.

        The first that is not in the lane is left to others with all behind it.
        """
        rx, put_off = self._received, self.together.take
        if rx.carried is None or self._out_of_lane or self._lane_write is None or self._read_only:
            return
        parser = self._parser
        size, known = parser.head_size, parser.known_flags
        while (head := parser.first()) is not None:
            _, flags, command, cookie, offset, length = head
            body = rx.start + size
            if (
                command != nbd.CMD_WRITE
                or flags & known
                or not 0 < length <= MOST_WRITTEN
                or rx.end - body < length
                or not put_off(cookie, offset, body, length)
            ):
                return
            rx.start = body + length

    def take(self, flags: int, cookie: int, offset: int, length: int) -> bool:
        """A WRITE whose header was taken; returns False where more of its data has to come first.

        Args:
            flags: without the one that says that a payload follows: it does, of a write.
            cookie: the client's name for it.
            offset: bytes.
            length: bytes.
        """
        if (
            flags & _UNKNOWN
            or self._read_only
            or offset + length > self._engine.size
            or length > nbd.DEFAULT_BLOCK_MAX
        ):
            return self._refuse(flags, cookie, offset, length)
        rx = self._received
        body = rx.start
        if rx.end - body < length:
            if length < self.stream_min:
                self._parser.put_back()
                return False
            self._begin_stream(flags, cookie, offset, length)
            return False
        rx.start = body + length
        if length and not flags and self._lane_write is not None:
            together = self.together
            small = length <= MOST_WRITTEN and not self._out_of_lane
            if small and together.take(cookie, offset, body, length):
                return True
            if together.pending:
                self.write_together()
            joined = self._joined
            follows, joined.end = offset == joined.end, offset + length
            short = length <= MOST_WRITTEN
            if follows and short and joined.take(cookie, offset, body, length):
                return True
            if self.in_lane(offset, rx.view[body : rx.start]):
                self._replies.done(cookie, offset)
                if self._moved is not None:
                    self._moved(length)
                return True
            if follows and not short and joined.take(cookie, offset, body, length):
                return True  # to move more than a page or two is worth it only here
        else:
            self.write_together()
            direct = self.direct
            if direct and not flags and direct.write(cookie, offset, rx.view[body : rx.start]):
                return True
        self._submit(flags, cookie, offset, rx.view[body : rx.start])
        return True

    def write_together(self) -> None:
        """Do what was put off, if anything was."""
        pending, view = self.together.pending, self._received.view
        if not pending:
            return
        if self.together.write():
            done, moved = self._replies.done, self._moved
            for cookie, offset, _, length in pending:
                done(cookie, offset)
                if moved is not None:
                    moved(length)
            return
        for cookie, offset, body, length in pending:
            self._submit(0, cookie, offset, view[body : body + length])

    def _submit(self, flags: int, cookie: int, offset: int, content: memoryview) -> None:
        """Let the engine do it."""
        owed, length = self._outstanding, len(content)
        req = NbdRequest(WRITE, offset, length, content, self._done)
        req.cookie = cookie
        req.taken = owed.taken
        req.lease = None
        if flags:
            req.fua = bool(flags & nbd.CMD_FLAG_FUA)
        req.chunk = chunk = self._received.chunk
        chunk.holds += 1
        owed.held += length
        owed.budget.room -= length
        owed.in_flight += 1
        self._engine.submit(req)

    def write_again(self, cookie: int, offset: int, length: int, lease: memoryview) -> None:
        """One that did not go past the page cache: the engine finds out why."""
        owed = self._outstanding

        def done(req: NbdRequest) -> None:
            POOL.give(lease)
            owed.held -= len(lease)
            owed.budget.give_back(len(lease))
            owed.finished(req)

        req = NbdRequest(WRITE, offset, length, lease[:length], done)
        req.cookie, req.taken = cookie, owed.taken
        owed.held += len(lease)
        owed.budget.room -= len(lease)
        owed.in_flight += 1
        self._engine.submit(req)

    def at_once(self, cookie: int, offset: int, body: int, length: int) -> bool:
        """A plain WRITE that came alone, if it is in the lane: returns whether it is done.

        Its reply is left to who asks.
        """
        if self._lane_write is None:
            return False
        small = length <= MOST_WRITTEN and not self._out_of_lane
        if small and self.together.take_one(offset, body, length):
            return True
        return self.in_lane(offset, self._received.view[body : body + length])

    def memory_for(self, offset: int, length: int) -> int:
        """Bytes that a write takes at a time: one that comes piece by piece, a piece."""
        engine = self._engine
        whole = (offset | length) & engine.mask or engine.order.strict or engine.guard is not None
        most = PIECE if self._lane_write is None else PLACED_PIECE
        return length if whole or length < self.stream_min else min(length, most)

    def in_lane(self, offset: int, content: memoryview) -> bool:
        """Whether a write was done in the lane; it is not tried again at once where it was not."""
        write = self._lane_write
        if write is None:
            return False
        if self._out_of_lane:
            self._out_of_lane -= 1
            return False
        if write(offset, content) == 0:
            return True
        self._out_of_lane = OUT_OF_LANE
        return False

    def _done(self, req: NbdRequest) -> None:
        owed = self._outstanding
        owed.in_flight -= 1
        meter = owed.meter
        if meter is not None:  # as `Outstanding.driven`, without a call
            meter.driven.append((meter, WRITE, req.length, req.taken, req.queued, req.status))
        owed.held -= req.length
        owed.budget.give_back(req.length)
        chunk = req.chunk
        assert chunk is not None
        chunk.holds -= 1
        if not chunk.holds and not chunk.current:
            chunk.free()
        if req.status:
            owed.failed(req)
        else:
            self._replies.done(req.cookie, req.offset)

    # ---- what cannot be ---------------------------------------------------------------------

    def _refuse(self, flags: int, cookie: int, offset: int, length: int) -> bool:
        parser = self._parser
        extended = bool(parser.payload_flag)
        if length > (nbd.DEFAULT_BLOCK_MAX if extended else MAX_SKIPPED):
            most = "32 MiB, the largest payload" if extended else "64 MiB"
            parser.error = f"sent a write that is longer than {most}"
            return False
        code, reason = self._why_not(flags, offset, length)
        refuse = partial(self._outstanding.refuse_at_once, WRITE, length)
        parser.pass_over(length, partial(refuse, cookie, offset, code, reason))
        return True

    def _why_not(self, flags: int, offset: int, length: int) -> tuple[int, str]:
        """Why a write cannot be: the errno, and a reason."""
        if flags & _UNKNOWN:
            return errno.EINVAL, f"a write does not take the flags {flags:#x}"
        if length > nbd.DEFAULT_BLOCK_MAX:
            return errno.EINVAL, "a write has 32 MiB at most"
        if self._read_only:
            return errno.EPERM, "the export is read-only"
        return errno.ENOSPC, self._outstanding.past_end(offset, length)

    # ---- a write that is begun before all of it is there ------------------------------------

    def _begin_stream(self, flags: int, cookie: int, offset: int, length: int) -> None:
        self.write_together()
        rx, owed = self._received, self._outstanding
        req = NbdRequest(WRITE, offset, length, None, owed.finished)
        req.cookie = cookie
        req.taken = owed.taken
        req.fua = bool(flags & nbd.CMD_FLAG_FUA)
        req.chunk = None
        req.lease = None
        self.stream = stream = StreamedWrite(self._engine, req, self._hold, self._lane_write)
        owed.in_flight += 1
        body, rx.start = rx.start, rx.end
        stream.begin(rx.view[body : rx.end])

    def _hold(self, size: int) -> None:
        self._outstanding.held += size
        self._outstanding.budget.give_back(-size)
        if size < 0:
            self._freed()

    def came(self, stream: StreamedWrite, count: int) -> bool:
        """`count` bytes have come into the stream's space; returns True at the end of its data."""
        over = stream.received(count)
        if over:
            self.stream = None
        return over

    def widen(self) -> bool:
        """Behind the write that is begun, take several at once; returns whether that is so.

        It is not where those are too long, or memory is short. What it takes of that is counted.
        """
        stream, budget = self.stream, self._outstanding.budget
        if stream is None or stream.length >= _WIDE_STREAM_MIN or budget.room < _ROOM_LEFT:
            return False
        if not self.wide:
            self.wide = True
            budget.room -= WIDE
            self._received.widen(WIDE)
            self.stream_min = _WIDE_STREAM_MIN
        return True

    def leave(self) -> None:
        """The client has gone."""
        self.abort_stream()
        if self.wide:
            self.wide = False
            self._outstanding.budget.give_back(WIDE)

    def abort_stream(self) -> None:
        """The rest of its data will not come."""
        stream, self.stream = self.stream, None
        if stream is not None and not stream.abort():
            self._outstanding.given_up()
