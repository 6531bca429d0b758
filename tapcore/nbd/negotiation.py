"""A handshake over a client's socket: its bytes come and go, until it is over."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from tapcore.nbd.handshake import Handshake
from tapcore.nbd.stream import Stream

_AT_ONCE: Final = 4096


class Negotiation:
    """Moves the bytes of a handshake.

    Args:
        sock: of the client; it does not block.
        handshake: what they mean.

    Attributes:
        handshake: as given.
    """

    __slots__ = ("_sending", "_sock", "handshake")

    def __init__(self, sock: Stream, handshake: Handshake) -> None:
        self._sock = sock
        self.handshake = handshake
        self._sending = b""

    def receive(self) -> bool:
        """Take what has come; returns False where the client sends no more.

        Raises:
            OSError: the connection is lost.
        """
        try:
            data = self._sock.recv(_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return True
        if data:
            self.handshake.receive(data)
        return bool(data)

    def send(self) -> bool:
        """Send what there is to be said; returns whether the client has taken all of it.

        Raises:
            OSError: the connection is lost.
        """
        self._sending += self.handshake.data_to_send()
        with suppress(BlockingIOError, InterruptedError):
            if self._sending:
                self._sending = self._sending[self._sock.send(self._sending) :]
        return not self._sending
