"""A request that comes alone is answered at once: nobody else has a turn for it.

A client that waits for each answer before it asks for more makes one trip through the poll set of
each request. Where that lies in the lane, whole, and nothing else is to be sent, all that is left
to do for it is to move its bytes. If somebody counts, how long that takes is looked at as rarely as
for others; the first request, and the one when what was counted is to be shown, go the ordinary
way, where that is done.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from tapcore.nbd import constants as nbd
from tapcore.nbd.reads import LANE_MAX
from tapcore.nbd.transmission import Transmission
from tapcore.nbd.writes import STREAM_MIN


class Alone:
    """Takes such requests of one client.

    Args:
        sock: of the client, whose calls do not wait.
        transmission: its requests.
    """

    __slots__ = (
        "_batch",
        "_lane",
        "_owed",
        "_parser",
        "_read",
        "_recv_into",
        "_replies",
        "_send",
        "_timed",
        "_transmission",
        "_write",
        "_written",
    )

    def __init__(self, sock: socket.socket, transmission: Transmission) -> None:
        self._recv_into = sock.recv_into
        self._send: Callable[[Sequence[bytes | memoryview]], int] = sock.sendmsg
        self._transmission = transmission
        self._parser = transmission.parser
        self._replies = transmission.replies
        self._lane = transmission.engine.lane
        self._write = transmission.writes.at_once
        self._owed = transmission.outstanding
        meter = transmission.outstanding.meter
        self._batch = None if meter is None else meter.batch
        self._timed = False
        self._read = _nobody if meter is None else meter.reads.append
        self._written = _nobody if meter is None else meter.writes.append

    def receive(self) -> bool | None:
        """Receive, and answer what has come if it is one request in the lane.

        Returns:
            True: it is answered, or there is nothing to do but to wait for more. False: somebody
            has to look at what has come, or to send. None: nothing was received; whoever tries
            again hears why.
        """
        # In one function, and a long one, since a request here costs little more than the calls.
        transmission, parser, replies = self._transmission, self._parser, self._replies
        if transmission.stalled or transmission.finished or replies.queue or parser.skipping:
            return None
        rx = parser.received
        try:
            count = self._recv_into(rx.space())
        except BlockingIOError:
            return True
        except OSError:
            return None
        if not count:
            return None
        rx.end += count
        head = parser.first()
        if head is None:
            return False
        _, flags, command, cookie, offset, length = head
        left = rx.end - rx.start - parser.head_size
        if flags or not length:
            return False
        lane = self._lane
        if command == nbd.CMD_READ:
            if left or length > LANE_MAX:
                return False
            lane.begin()
            if not self._may_count(lane.now):
                return False
            content = lane.to_read(offset, length)
            if content is None or not lane.holds_last():
                return False
            self._read(length)
            rx.start = rx.end
            return self._answer(cookie, offset, length, content)
        if command == nbd.CMD_WRITE:
            if left < length < STREAM_MIN:
                return True  # most clients send the head first, and long content in parts
            if left != length:
                return False
            lane.begin()
            if not self._may_count(lane.now):
                return False
            if not self._write(cookie, offset, rx.end - length, length):
                return False
            self._written(length)
            rx.start = rx.end
            return self._answer(cookie, offset)
        return False

    def _answer(
        self, cookie: int, offset: int, length: int = 0, content: memoryview | None = None
    ) -> bool:
        """Send a reply past the queue, which is empty; returns whether all of it went.

        Of what did not go the rest is queued, for the ordinary way.
        """
        replies = self._replies
        buffers: tuple[bytes] | tuple[bytes, memoryview]
        if content is None:
            buffers = (replies.head_of_done(cookie, offset),)
        else:
            buffers = replies.head_of_data(cookie, offset, length), content
        try:
            sent = self._send(buffers)
        except OSError:  # no room, or no page
            sent = -1
        if sent == len(buffers[0]) + length:
            replies.passed(sent)
        else:
            if content is None:
                replies.done(cookie, offset)
            else:
                replies.mapped(cookie, offset, content, length)
            if sent < 0:
                return False
            replies.advance(sent)
        if self._timed and self._batch is not None:
            self._batch.count()
        return not replies.queue

    def _may_count(self, now: float) -> bool:
        """Whether a request that is taken `now` can be counted here, or nobody counts."""
        self._timed = False
        batch = self._batch
        if batch is None or now < batch.next:
            return True
        others = batch.timed or batch.driven or batch.told
        if others or not batch.armed or now >= batch.due:
            return False
        self._owed.time_batch(now)
        self._timed = True
        return True


def _nobody(length: int) -> None:
    """Nobody counts."""
