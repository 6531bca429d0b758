"""The transmission phase of one NBD connection: requests in, replies out, no sockets.

Everything received is parsed, handed to the engine, and answered in batches; the owner calls
`Engine.turn` between `received` and sending what is in `replies`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from tapcore.buffers import POOL
from tapcore.engine import WRITE
from tapcore.nbd import constants as nbd
from tapcore.nbd.commands import Commands
from tapcore.nbd.exports import Export
from tapcore.nbd.handshake import Negotiated
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.reads import Reads
from tapcore.nbd.receive import ReceiveBuffer
from tapcore.nbd.replies import Replies
from tapcore.nbd.streaming import StreamedWrite

MAX_HELD: Final = 32 << 20
"""Bytes of memory (buffers in use) and of replies waiting that one connection may have; beyond
it, nothing more is read from the client."""

MAX_IN_FLIGHT: Final = 1024
"""Requests of one connection under way."""

MAX_SKIPPED: Final = 64 << 20
"""A write longer than this is not even skipped: the connection is closed."""

LANE_MAX: Final = 256 << 10
"""Bytes. Longer reads are sent from the file itself, without a copy."""

OUT_OF_LANE: Final = 7
"""So many writes go to the engine behind one that was not in the lane: who fills new clusters goes
on doing so, and need not be looked for twice."""

STREAM_MIN: Final = 128 << 10
"""Writes from this size on are begun before all of their data has arrived."""

_HEADER: Final = nbd.REQUEST.size
_UNPACK: Final = nbd.REQUEST.unpack_from


class Transmission:
    """One client's requests.

    What it waits for can always still happen. Between two requests it stops reading at each of
    three limits: for requests that the engine has whole, and answers without this client; and for
    the client to take replies that it has asked for. Inside a request it stops for its memory
    alone: of that, what waits for this client is one buffer (a piece of a streamed write, or 32
    MiB for one that has to come whole), which never reaches MAX_HELD by itself; so the engine has
    the rest, and gives it back whatever else comes. A client that is in the middle of a request
    need not take any reply first.

    Args:
        export: the disk.
        negotiated: what the handshake agreed on.
        ready: called when there is something to be sent again, or to be read.
        initial: bytes that came after the handshake's last option.

    Attributes:
        engine: of the disk.
        replies: what is to be sent.
        outstanding: requests taken and not answered.
        stalled: parsing stopped because of a limit; call `resume` after something finished.
        finished: the client said goodbye, or broke the protocol: close when nothing is in flight.
        error: why, where it broke the protocol.
    """

    __slots__ = (
        "_commands",
        "_export",
        "_lane",
        "_lane_max",
        "_lane_write",
        "_losses",
        "_out_of_lane",
        "_read_only",
        "_reads",
        "_ready",
        "_received",
        "_skip",
        "_stream",
        "engine",
        "error",
        "finished",
        "outstanding",
        "replies",
        "stalled",
    )

    def __init__(
        self,
        export: Export,
        negotiated: Negotiated,
        ready: Callable[[], object],
        initial: bytes = b"",
    ) -> None:
        self._export = export
        self._ready = ready
        self.engine = export.engine
        self.replies = Replies(structured=negotiated.structured_replies, ready=ready)
        self.outstanding = Outstanding(self.replies, export.disk)
        self._reads = Reads(export, self.outstanding)
        self._commands = Commands(export, negotiated, self.outstanding)
        export.senders.add(self.replies)
        self._lane = export.engine.lane
        self._lane_max = LANE_MAX
        self._lane_write = self._lane.write if self._lane.writes else None
        self._out_of_lane = 0
        self._losses = self._lane.losses
        flags = negotiated.transmission_flags
        self._read_only = bool(flags & nbd.TransmissionFlag.READ_ONLY)
        self._received = ReceiveBuffer(initial)
        self._stream: StreamedWrite | None = None
        self._skip = 0
        self.stalled = False
        self.finished = False
        self.error = ""
        if initial:
            self._parse()

    def only_copies(self) -> None:
        """What is sent and received is touched in this process: no memory of host files for it."""
        self._lane_max = 0
        if self.replies.lane_reads:  # of requests that came with the handshake
            self.answer_again()

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return self.outstanding.in_flight

    @property
    def held(self) -> int:
        """Bytes of buffers in use."""
        return self.outstanding.held

    # ---- receiving --------------------------------------------------------------------------

    def space(self) -> memoryview:
        """Where the next bytes from the client go; tell `received` how many came."""
        if self._stream is not None:
            return self._stream.space()
        return self._received.space()

    def received(self, count: int) -> None:
        """`count` bytes have come into `space()`."""
        stream = self._stream
        if stream is not None:
            if stream.received(count):
                self._stream = None
            self._check_limits()
            return
        self._received.end += count
        self._parse()

    def resume(self) -> bool:
        """Something has finished: go on where a limit stopped the parsing, if it may.

        Returns:
            Whether the parsing went on, so that the engine has to have another turn. (It may have
            stopped at a limit again, with requests that no driver was told to submit yet.)
        """
        if not self.stalled or self._over_limit():
            return False
        self.stalled = False
        if self._stream is None:  # else more of its data has to come, and nothing is there to parse
            self._parse()
        return True

    def _over_limit(self) -> bool:
        owed = self.outstanding
        if self._stream is not None:
            return owed.held > MAX_HELD
        return (
            owed.held > MAX_HELD
            or owed.in_flight >= MAX_IN_FLIGHT
            or self.replies.queued - self.replies.sent > MAX_HELD
        )

    def _check_limits(self) -> None:
        self.stalled = self._over_limit()

    def _parse(self) -> None:
        """Take every complete request out of the receive buffer."""
        rx = self._received
        if self._skip:
            self._skip_payload()
        owed, replies = self.outstanding, self.replies
        read, lane = self._reads.take, self._lane
        lane.begin()
        most = self._lane_max if lane.reads else 0
        full = replies.sent + MAX_HELD  # nothing is sent while this runs
        while rx.end - rx.start >= _HEADER and not self.finished:
            if owed.held > MAX_HELD or owed.in_flight >= MAX_IN_FLIGHT or replies.queued > full:
                self.stalled = True
                return
            start = rx.start
            magic, flags, command, cookie, offset, length = _UNPACK(rx.view, start)
            if magic != nbd.REQUEST_MAGIC:
                self._break_off("sent something that is not a request")
                return
            if command == nbd.CMD_READ:
                rx.start = start + _HEADER
                if 0 < length <= most and not flags:
                    content = lane.to_read(offset, length)
                    if content is not None:
                        replies.mapped(cookie, offset, content, length)
                        continue
                read(flags, cookie, offset, length)
            elif command == nbd.CMD_WRITE:
                if not self._write(flags, cookie, offset, length):
                    return
            else:
                rx.start = start + _HEADER
                if command == nbd.CMD_DISC:
                    self.finished = True
                else:
                    self._commands.take(command, flags, cookie, offset, length)
        if replies.queued > full and not self._skip:
            self.stalled = True

    def _break_off(self, why: str) -> None:
        self.error = why
        self.finished = True

    # ---- writes -----------------------------------------------------------------------------

    def _write(self, flags: int, cookie: int, offset: int, length: int) -> bool:
        """Take a write; returns False when more of its data has to arrive first."""
        rx = self._received
        body = rx.start + _HEADER
        available = rx.end - body
        problem = self._write_problem(flags, offset, length)
        if problem:
            if length > MAX_SKIPPED:
                self._break_off("sent a write that is longer than 64 MiB")
                return False
            rx.start = body
            self._skip = length
            self.outstanding.refuse(cookie, *problem)
            self._skip_payload()
            return not self._skip
        if available < length:
            if length < STREAM_MIN:
                return False
            return self._begin_stream(flags, cookie, offset, length, body)
        rx.start = body + length
        content = rx.view[body : rx.start]
        if self._lane_write is not None and length and not flags and self._written(offset, content):
            self.replies.done(cookie)
            return True
        req = NbdRequest(WRITE, offset, length, content, self._write_done)
        req.cookie = cookie
        req.lease = None
        if flags:
            req.fua = bool(flags & nbd.CMD_FLAG_FUA)
        req.chunk = chunk = rx.chunk
        chunk.holds += 1
        owed = self.outstanding
        owed.held += length
        owed.in_flight += 1
        self.engine.submit(req)
        return True

    def _written(self, offset: int, content: memoryview) -> bool:
        """Whether a write was done in the lane; it is not tried again at once where it was not."""
        assert self._lane_write is not None
        if self._out_of_lane:
            self._out_of_lane -= 1
            return False
        if self._lane_write(offset, content) == 0:
            return True
        self._out_of_lane = OUT_OF_LANE
        return False

    def _write_problem(self, flags: int, offset: int, length: int) -> tuple[int, str] | None:
        """Why a write cannot be: the errno, and a reason."""
        if flags & ~nbd.CMD_FLAG_FUA or length > nbd.DEFAULT_BLOCK_MAX:
            return errno.EINVAL, "bad flags, or longer than 32 MiB"
        if self._read_only:
            return errno.EPERM, "the export is read-only"
        if offset + length > self.engine.size:
            return errno.ENOSPC, self.outstanding.past_end(offset, length)
        return None

    def _skip_payload(self) -> None:
        rx = self._received
        count = min(self._skip, rx.end - rx.start)
        rx.start += count
        self._skip -= count

    def _begin_stream(self, flags: int, cookie: int, offset: int, length: int, body: int) -> bool:
        """A long write whose end has not arrived yet: begin with what is there."""
        rx = self._received
        req = NbdRequest(WRITE, offset, length, None, self.outstanding.finished)
        req.cookie = cookie
        req.fua = bool(flags & nbd.CMD_FLAG_FUA)
        req.chunk = None
        req.lease = None
        self._stream = stream = StreamedWrite(self.engine, req, self._hold)
        self.outstanding.in_flight += 1
        rx.start = rx.end
        stream.begin(rx.view[body : rx.end])
        self._check_limits()
        return False

    def _hold(self, size: int) -> None:
        self.outstanding.held += size
        if size < 0 and self.stalled:
            self._ready()  # nothing is to be sent, but more may be read

    def _write_done(self, req: NbdRequest) -> None:
        owed = self.outstanding
        owed.in_flight -= 1
        owed.held -= req.length
        chunk = req.chunk
        assert chunk is not None
        chunk.holds -= 1
        if not chunk.holds and not chunk.current:
            POOL.give(chunk.view)
        if req.status:
            owed.failed(req)
        else:
            self.replies.done(req.cookie)

    # ---- sending ----------------------------------------------------------------------------

    def may_send(self) -> bool:
        """Whether what waits to be sent from memory of host files is still what it was.

        If not, whoever has sent a part of such a reply cannot go on, and the rest has been given to
        the engine, which has to have another turn.
        """
        lane = self._lane
        if lane.holds() and lane.losses == self._losses:
            return True
        self._losses = lane.losses
        self.answer_again()
        return False

    def answer_again(self) -> bool:
        """The kernel could not read such memory; returns whether the engine is asked instead."""
        self._lane.failed()
        taken = self.replies.take_back()
        self._reads.answer_again(taken)
        return bool(taken)

    # ---- the end ----------------------------------------------------------------------------

    def finish(self) -> None:
        """Take no more requests; those taken are still answered."""
        self.finished = True
        self._abort_stream()  # the rest of its data will not be waited for

    def _abort_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and not stream.abort():
            self.outstanding.in_flight -= 1

    def gone(self) -> None:
        """The connection is lost: nothing more comes, and nothing more can be sent."""
        self.outstanding.gone = True
        self.finished = True
        self._abort_stream()
        self._received.close()
        self._export.leave(self.replies)
        self.replies.discard()
