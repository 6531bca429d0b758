"""A request that comes alone is answered at once: nobody else has a turn for it.

A client that waits for each answer before it asks for more makes one trip through the poll set of
each request. Where that lies in the lane, whole, and nothing else is to be sent, all that is left
to do for it is to move its bytes. If somebody counts, how long that takes is looked at as rarely as
for others; the first request, and the one when what was counted is to be shown, go the ordinary
way, where that is done.

Past the page cache the disk has to be asked. It has a moment for that (`DirectRequests.at_once`) if
nobody else is served by this loop: for the client it is the same whether the loop waits for the
disk here or there, and here it is half the calls. One that has more to ask for would have to wait
with that meanwhile, so it is looked at now and then whether it does, and has said something.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final

from tapcore.buffers import POOL
from tapcore.engine import READ, WRITE
from tapcore.engine.loop import Loop
from tapcore.nbd import constants as nbd
from tapcore.nbd.reads import LANE_MAX
from tapcore.nbd.transmission import Transmission
from tapcore.nbd.writes import STREAM_MIN

_LOOKED_AT: Final = 16
"""Of so many requests that waited for the disk here, it is looked at once whether more has come."""

_NOT_ALONE: Final = 256
"""So many requests go the ordinary way where it has."""


class Alone:
    """Takes such requests of one client.

    Args:
        sock: of the client, whose calls do not wait.
        transmission: its requests.
        loop: in which both are.
    """

    __slots__ = (
        "_batch",
        "_direct",
        "_lane",
        "_loop",
        "_owed",
        "_parser",
        "_read",
        "_recv_into",
        "_replies",
        "_send",
        "_sock",
        "_timed",
        "_transmission",
        "_write",
        "_written",
    )

    def __init__(self, sock: socket.socket, transmission: Transmission, loop: Loop) -> None:
        self._sock = sock
        self._loop = loop
        self._direct = 0  # requests that go past the page cache up to the next look; <0: not here
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
            if transmission.direct is not None:
                return self._past_page_cache(READ, cookie, offset, length)
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
            if transmission.direct is not None:
                return self._past_page_cache(WRITE, cookie, offset, length)
            if not self._write(cookie, offset, rx.end - length, length):
                return False
            self._written(length)
            rx.start = rx.end
            return self._answer(cookie, offset)
        return False

    def _past_page_cache(self, op: int, cookie: int, offset: int, length: int) -> bool:
        """The same of a request that the disk itself has to answer."""
        direct, rx = self._transmission.direct, self._parser.received
        if self._direct < 0 or self._loop.served != 1 or direct is None:
            self._direct += self._direct < 0
            return False
        content = None if op == READ else rx.view[rx.end - length : rx.end]
        done = direct.at_once(op, cookie, offset, length, content)
        if done is None:
            return False
        rx.start = rx.end
        if not len(done):  # its answer comes later: the disk is slow, and others may come
            self._direct = -_NOT_ALONE
            return False
        if self._direct:
            self._direct -= 1
        else:
            self._direct = -_NOT_ALONE if self._has_more() else _LOOKED_AT
        if op == READ:
            self._read(length)
            return self._answer(cookie, offset, length, done[:length], done)
        POOL.give(done)
        self._written(length)
        return self._answer(cookie, offset)

    def _has_more(self) -> bool:
        """Whether the client has sent something before it has its answer."""
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:  # BlockingIOError, mostly
            return False

    def _answer(
        self,
        cookie: int,
        offset: int,
        length: int = 0,
        content: memoryview | None = None,
        lease: memoryview | None = None,
    ) -> bool:
        """Send a reply past the queue, which is empty; returns whether all of it went.

        Of what did not go the rest is queued, for the ordinary way. A content of the pool is given
        back (`lease`).
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
            if lease is not None:
                POOL.give(lease)
        else:
            if content is None:
                replies.done(cookie, offset)
            elif lease is not None:
                replies.budget.room -= len(lease)
                replies.data(cookie, offset, content, length, lease)
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
