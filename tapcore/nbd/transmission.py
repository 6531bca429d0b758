"""The transmission phase of one NBD connection: requests in, replies out, no sockets.

Everything received is parsed, handed to the engine, and answered in batches; the owner calls
`Engine.turn` between `received` and sending what is in `replies`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tapcore.metrics.meter import NO_BATCH
from tapcore.nbd import constants as nbd
from tapcore.nbd.budget import Budget
from tapcore.nbd.commands import Commands
from tapcore.nbd.exportinfo import Negotiated
from tapcore.nbd.exports import Export
from tapcore.nbd.outstanding import MAX_HELD, MAX_IN_FLIGHT, Outstanding
from tapcore.nbd.payloads import Payloads
from tapcore.nbd.reads import LANE_MAX, Reads
from tapcore.nbd.replystyles import replies_for
from tapcore.nbd.requestparser import Command, RequestParser
from tapcore.nbd.share import Share
from tapcore.nbd.streaming import StreamedWrite
from tapcore.nbd.tracing import is_traced
from tapcore.nbd.writes import Writes

if TYPE_CHECKING:
    from tapcore.nbd.direct import DirectRequests

MAX_WAITING: Final = 16384
"""Pieces of replies that may wait for one client, however short: each takes memory of its own.
Those of what it sends at once, at most as many again, come on top."""


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
        budget: of the memory of all clients; None: one of its own.

    Attributes:
        direct: takes reads and writes that go past the page cache; None: none do.
        engine: of the disk.
        replies: what is to be sent.
        outstanding: requests taken and not answered.
        parser: of what the client sends.
        writes: carries out those of them.
        stalled: parsing stopped because of a limit; call `resume` after something finished.
        finished: the client said goodbye, or broke the protocol: close when nothing is in flight.
        error: why, where it broke the protocol.
    """

    __slots__ = (
        "_batch",
        "_commands",
        "_export",
        "_lane",
        "_lane_max",
        "_losses",
        "_moved",
        "_payloads",
        "_read",
        "_read_only",
        "_reads",
        "_ready",
        "_received",
        "_share",
        "_write",
        "direct",
        "engine",
        "error",
        "finished",
        "outstanding",
        "parser",
        "replies",
        "stalled",
        "writes",
    )

    def __init__(
        self,
        export: Export,
        negotiated: Negotiated,
        ready: Callable[[], object],
        initial: bytes = b"",
        budget: Budget | None = None,
    ) -> None:
        self._export = export
        self._ready = ready
        self.engine = export.engine
        structured, extended = negotiated.structured_replies, negotiated.extended_headers
        self.replies = replies_for(structured=structured, extended=extended, ready=ready)
        if budget is not None:
            self.replies.budget = budget
        self.outstanding = Outstanding(self.replies, export.disk, meter := export.meter)
        self._moved = None if meter is None else meter.reads.append
        self._batch = NO_BATCH if meter is None else meter.batch
        self.parser = RequestParser(extended=extended, initial=initial)
        self._received = self.parser.received
        flags = negotiated.transmission_flags
        self._read_only = read_only = bool(flags & nbd.TransmissionFlag.READ_ONLY)
        self._reads = Reads(export, self.outstanding)
        self.writes = Writes(
            export, self.outstanding, self.parser, read_only=read_only, freed=self._freed
        )
        self._read, self._write = self._reads.take, self.writes.take  # bound once
        self.direct: DirectRequests | None = None
        self._choose_ways()
        self._commands = Commands(export, negotiated, self.outstanding, self.parser, ready)
        self._payloads = Payloads(self.parser, self._commands, self._has_room)
        export.senders.add(self.replies)
        self._lane, self._lane_max = export.engine.lane, LANE_MAX
        self._losses = self._lane.losses
        self._share = Share(self.outstanding, ready)
        self.stalled = self.engine.held
        self.finished = False
        self.error = ""
        if initial and not self.stalled:
            self._parse()

    def _choose_ways(self) -> None:
        """By the images that the disk has now."""
        direct = None
        if self._export.disk.disks.options.cache == "none" and not is_traced(self.engine):
            from tapcore.nbd.direct import DirectRequests

            write = None if self._read_only else self.writes.write_again
            owed, parser, read = self.outstanding, self.parser, self._reads.read_again
            direct = DirectRequests(self.engine, owed, parser, read, write)
        self.direct = self._reads.direct = self.writes.direct = direct

    def only_copies(self) -> None:
        """What is sent and received is touched in this process: no memory of host files for it."""
        self._lane_max = self._reads.lane_max = 0
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

    @property
    def amid_a_write(self) -> bool:
        """Whether a write was begun whose data is still on its way."""
        return self.writes.stream is not None

    # ---- receiving --------------------------------------------------------------------------

    def space(self) -> memoryview:
        """Where the next bytes from the client go; tell `received` how many came."""
        stream = self.writes.stream
        return self._received.space() if stream is None else stream.space()

    def received(self, count: int) -> None:
        """`count` bytes have come into `space()`."""
        stream = self.writes.stream
        if stream is not None:
            self.came(stream, count)
            return
        self._received.end += count
        self._parse()

    def came(self, stream: StreamedWrite, count: int) -> bool:
        """So many bytes have come into the space of `stream`.

        Returns:
            Whether there is nothing to do but to wait for the rest: they went to their place.
        """
        over = self.writes.came(stream, count)
        if stream.placed and not over:
            return True
        self.stalled = self._over_limit()
        return False

    def resume(self) -> bool:
        """Something has finished: go on where a limit stopped the parsing, if it may.

        Returns:
            Whether the parsing went on, so that the engine has to have another turn. (It may have
            stopped at a limit again, with requests that no driver was told to submit yet.)
        """
        if not self.stalled or self._over_limit() or not self._share.comes():
            return False
        self.stalled = False
        if not self.amid_a_write and not self.finished:  # else there is nothing to be parsed
            self._parse()
        return True

    @property
    def unfinished(self) -> bool:
        """Whether `go_on` has something to do."""
        return bool(self._commands.unfinished) and not self.engine.held

    def go_on(self) -> None:
        """Begin the next piece of each request that is too long for one go.

        Everybody else has his turn before the one after that, so the engine is asked once a batch.
        """
        if not self.engine.held:
            self._commands.go_on()

    def hold_changed(self) -> None:
        """The engine is held, or not any more: then its images may be others."""
        if self.engine.held:
            self.stalled = True
            return
        self.writes.follow()
        self._choose_ways()
        self._commands.follow()

    def let_go_of_files(self) -> bool:
        """Files are closed next: whether nothing to be sent lies there (it was read out before)."""
        return not self.replies.lies_in_files

    def _over_limit(self) -> bool:
        if self.engine.held:
            return True
        owed = self.outstanding
        if self.amid_a_write:
            return owed.held > MAX_HELD
        return (
            owed.held > MAX_HELD
            or owed.in_flight >= MAX_IN_FLIGHT
            or self.replies.queued - self.replies.sent > MAX_HELD
            or len(self.replies.queue) > MAX_WAITING
        )

    def _freed(self) -> None:
        if self.stalled:
            self._ready()  # nothing is to be sent, but more may be read

    def _parse(self) -> None:
        """Do all that was received whole, up to a limit."""
        try:
            self._parse_all()
            self.writes.write_together()
        finally:  # what was queued before a fault is counted, and somebody may wait for it
            if self.direct is not None:
                self.direct.submit()

    def _parse_all(self) -> None:  # long: calls would be most of what a small request costs
        parser, owed, replies = self.parser, self.outstanding, self.replies
        if parser.skipping and not self._skipped():
            return
        budget = owed.budget
        read, write, lane = self._read, self._write, self._lane
        lane.begin()
        moved = self._moved
        if moved is not None:
            owed.taken = now = lane.now
            if now >= self._batch.next:
                owed.time_batch(now)
        most = self._lane_max if lane.reads else 0
        full = replies.sent + MAX_HELD  # nothing is sent while this runs
        known, together = parser.known_flags, self.writes.together
        if self.direct is not None:
            self.direct.take_rows()
        elif not most or not parser.read_comes_first():
            self.writes.put_off()
        else:
            self._reads.take_in_lane(parser, full)
        for _, flags, command, cookie, offset, length in parser.heads():
            if command == nbd.CMD_READ and not flags:
                if 0 < length <= most and (content := lane.to_read(offset, length)) is not None:
                    replies.mapped(cookie, offset, content, length)
                    if moved is not None:
                        moved(length)
                elif length > budget.room and not self._room_for(command, offset, length):
                    return
                else:
                    if together.pending:
                        self.writes.write_together()
                    read(0, cookie, offset, length)
            elif command == nbd.CMD_WRITE:
                if length > budget.room and not self._room_for(command, offset, length):
                    return
                if not write(flags & known, cookie, offset, length):
                    self._stopped()
                    return
            elif not self._take(Command(command, flags, cookie, offset, length)):
                self._stopped()
                return
            if owed.held > MAX_HELD or owed.in_flight >= MAX_IN_FLIGHT or replies.queued > full:
                self.stalled = not parser.skipping
                return
        if parser.error:
            self._stopped()
        elif len(replies.queue) > MAX_WAITING:
            self.stalled = not parser.skipping

    def _room_for(self, command: int, offset: int, length: int) -> bool:
        """Whether a READ or WRITE may take its memory; see `_has_room`."""
        if length > nbd.DEFAULT_BLOCK_MAX or offset + length > self.engine.size:
            return True  # it is refused
        reads = command == nbd.CMD_READ
        return self._has_room(length if reads else self.writes.memory_for(offset, length))

    def _has_room(self, needed: int) -> bool:
        """Whether a request may take so many bytes; else it is put back, and tried again later."""
        if self._share.has_room(needed):
            return True
        self.parser.put_back()
        self.stalled = True
        return False

    def _stopped(self) -> None:
        """The parsing did not come to the end of what was received."""
        if self.amid_a_write:
            self.stalled = self._over_limit()
        elif self.parser.error:
            self.error, self.finished = self.parser.error, True

    def _skipped(self) -> bool:
        """Go on with a payload that nobody wants; returns whether requests may be taken again."""
        self.parser.skip()
        if self.parser.skipping:
            return False
        self.stalled = self._over_limit()
        return not self.stalled

    def _take(self, asked: Command) -> bool:
        """Neither a plain READ nor a WRITE; returns False at the end, or where more must come."""
        self.writes.write_together()
        if asked.number == nbd.CMD_DISC:
            self.finished = True
            return False
        if asked.flags & self.parser.payload_flag:
            return self._payloads.take(asked)
        if asked.number == nbd.CMD_READ:
            if not self._room_for(asked.number, asked.offset, asked.length):
                return False
            self._reads.take(asked.flags, asked.cookie, asked.offset, asked.length)
            return True
        if not self._has_room(self._commands.memory_for(asked)):
            return False
        self._commands.take(asked)
        return True

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
        self.writes.abort_stream()  # the rest of its data will not be waited for
        if self.engine.held:
            self._commands.give_up()

    def gone(self) -> None:
        """The connection is lost: nothing more comes, and nothing more can be sent."""
        self.outstanding.gone = True
        self.outstanding.leave()
        self.finished = True
        self.writes.leave()
        self._commands.give_up()
        self._received.close()
        self._export.leave(self.replies)
        self.replies.discard()
        self._share.leave()
