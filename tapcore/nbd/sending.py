"""Replies on their way into a client's socket, which may take less than there is."""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import Final

from tapcore.nbd.filespan import FileSpan
from tapcore.nbd.replies import Replies
from tapcore.nbd.stream import Stream
from tapcore.nbd.transmission import Transmission

log = logging.getLogger(__name__)

SHRUNK: Final = "the image's file has become shorter"


class Sender:
    """Sends the replies of one client.

    Args:
        sock: of the client.
    """

    __slots__ = ("_sock", "_took")

    def __init__(self, sock: Stream) -> None:
        self._sock = sock
        self._took = -1, 0

    def send(self, transmission: Transmission) -> bool:
        """Send what there is, as far as the socket takes it.

        Returns:
            Whether the engine was asked for some of it instead.

        Raises:
            OSError: the connection cannot go on.
        """
        replies, asked = transmission.replies, False
        try:
            if (replies.lane_reads or replies.late) and not transmission.may_send():
                asked = True
                if replies.reads_file:
                    raise OSError(errno.EFAULT, SHRUNK)
            while replies.queue:
                try:
                    count = self._send_some(replies)
                except OSError as exc:
                    if exc.errno != errno.EFAULT or not transmission.answer_again():
                        raise
                    asked = True
                else:
                    replies.advance(count)
        except (BlockingIOError, InterruptedError):
            replies.wait()
        except OSError as exc:
            if exc.errno == errno.EFAULT:  # a reply that was begun cannot be taken back
                log.error("client dropped: %s while it was being sent", SHRUNK)
            raise
        return asked

    def _send_some(self, replies: Replies) -> int:
        first = replies.queue[0]
        if isinstance(first, FileSpan):
            return self._send_span(first)
        if len(replies.queue) == 1:
            return self._sock.send(first)
        buffers = replies.next_buffers()
        more = socket.MSG_MORE if len(buffers) < len(replies.queue) else 0
        return self._sock.sendmsg(buffers, (), more)

    def _send_span(self, span: FileSpan) -> int:
        count = os.sendfile(self._sock.fileno(), span.fd, span.offset, span.length)
        if count:
            return count
        # it was long enough when the reply was begun
        raise OSError(errno.EFAULT, SHRUNK)

    def took_nothing(self, replies: Replies, rounds: int) -> bool:
        """See `Client`."""
        held, sent = self._held_and_sent(replies)
        before, self._took = self._took, (rounds, sent)
        return held and before == (rounds - 1, sent)

    def _held_and_sent(self, replies: Replies) -> tuple[bool, int]:
        """Whether memory waits for the client, and how many bytes it has ever taken."""
        return bool(replies.leased), replies.sent
