"""A client from STARTTLS on: what `Connection` does, through TLS."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from select import EPOLLONESHOT
from typing import Final

from tapcore.engine.loop import IN, OUT, Deadline, Loop
from tapcore.nbd.clients import Clients
from tapcore.nbd.connection import LINGER_SECONDS, Connection
from tapcore.nbd.exports import Exports
from tapcore.nbd.handshake import Handshake, TlsMode
from tapcore.nbd.replies import Replies
from tapcore.nbd.sending import Sender
from tapcore.nbd.tlsfiles import Credentials
from tapcore.nbd.tlssocket import AT_ONCE, RECORD, TlsSocket
from tapcore.nbd.tlssteps import Step, Steps
from tapcore.nbd.transmission import Transmission

log = logging.getLogger(__name__)

_IN_A_ROW: Final = 2
"""How often a client is received from before its answers are sent, and others have their turn: a
few long writes (2 MiB at most), which are answered together. Twice as often where all the others
send as much: the fewer turns, the less time goes into waking each other."""


class TlsSender(Sender):
    """Sends through TLS.

    Args:
        sock: of the client.
    """

    __slots__ = ()

    _sock: TlsSocket

    def __init__(self, sock: TlsSocket) -> None:
        super().__init__(sock)

    def _send_some(self, replies: Replies) -> int:
        return self._sock.send_items(replies.queue, replies.unsent)

    def _held_and_sent(self, replies: Replies) -> tuple[bool, int]:
        left = self._sock.left
        return bool(left or replies.leased), replies.sent - left


class TlsConnection(Connection):
    """Takes over a client that has been told that TLS begins.

    Args:
        sock: of the client.
        exports: what the server offers.
        loop: the poll set.
        clients: the server's.
        handshake: of NBD, in STARTING_TLS.
        deadline: by which an export has to be chosen.
        credentials: what the server proves itself with.
        steps: does steps of the handshake, where that could hold up other clients.
    """

    _socket: TlsSocket

    def __init__(
        self,
        sock: socket.socket,
        exports: Exports,
        loop: Loop,
        clients: Clients,
        handshake: Handshake,
        deadline: Deadline | None,
        credentials: Credentials,
        steps: Steps,
    ) -> None:
        self._credentials = credentials
        self._steps = steps
        self._long_writes = False
        secure = TlsSocket(sock, credentials.context, clients.budget)
        super().__init__(secure, exports, loop, clients, handshake=handshake, deadline=deadline)

    # ---- events -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Nothing is sent before the client speaks TLS."""

    def _ready(self, events: int) -> None:
        if self._socket.step is not None:
            return  # it is heard again when that is done
        self._clients.dirty.add(self)
        try:
            if not self._socket.ready:
                self._shake_hands()
                return
            self._socket.flush()
            if events & ~OUT:
                self._receive(events)
            if self.open and self._transmission is None:
                self._send_handshake()
        except OSError as exc:
            self._lose(f"connection lost: {exc.strerror or exc}")
        except Exception:
            self._fail()

    def _shake_hands(self) -> None:
        """The next step of it; in a thread where there is somebody whom it would hold up."""
        sock = self._socket
        step = Step(sock.shake_hands, self._step_done)
        if len(self._clients.all) > 1:
            self._poll(EPOLLONESHOT)  # before the thread can ask for the interpreter's lock
            with suppress(OSError):  # there is no thread
                self._steps.put(step)
                sock.step = step
                return
        step.run()
        self._shaken(step)

    def _step_done(self, step: Step) -> None:
        self._socket.step = None
        if not self.open:
            self._socket.close()
            return
        self._clients.dirty.add(self)
        try:
            self._shaken(step)
        except Exception:
            self._fail()

    def _shaken(self, step: Step) -> None:
        try:
            over = step.result()
        except OSError as exc:
            self._lose(f"TLS has failed: {exc.strerror or exc}")
            return
        if not over:
            self._poll(IN)
            return
        refusal = self._credentials.refusal(self._socket.peer)
        if refusal:
            self._lose(f"TLS has failed: {refusal}")
            return
        assert self._negotiation is not None
        self._negotiation.handshake.tls_started()
        self._receive_handshake()  # it may have sent more already
        if self.open and self._transmission is None:
            self._send_handshake()

    def _receive(self, events: int) -> None:
        """Of writes, as many as there is room for come at once.

        Of those that are too long for that, little is received with the head, since that would have
        to be copied: the rest goes straight to where it is written from.
        """
        transmission = self._transmission
        if transmission is not None and not self._socket.wide:
            self._socket.widen()
        within = transmission is None or transmission.amid_a_write
        self._socket.most = RECORD if self._long_writes and not within else AT_ONCE
        super()._receive(events)
        if transmission is not None and not within:
            self._long_writes = transmission.amid_a_write and not transmission.writes.widen()

    def service(self) -> bool:
        """As `Connection.service`; what has been received counts, of which no event tells."""
        again = super().service()
        if self._has_more:
            self._clients.unfinished.add(self)
        return again

    def go_on(self) -> None:
        """See `Client`; and take more of what has been received.

        Only so much of it that others have their turn, however quickly this client sends.
        """
        super().go_on()
        try:
            for _ in range(2 * _IN_A_ROW if self._clients.alike else _IN_A_ROW):
                if not self._has_more:
                    return
                self._receive(IN)
        except Exception:
            self._fail()

    @property
    def _has_more(self) -> bool:
        """Whether more can be taken at once of what the client has sent."""
        sock = self._socket
        if sock.step is not None or sock.starved or not self.open:
            return False  # what a step of the handshake has changed is not told yet
        transmission = self._transmission
        return transmission is None or not (transmission.stalled or transmission.finished)

    # ---- replies ----------------------------------------------------------------------------

    def _make_transmission(self, handshake: Handshake) -> Transmission | None:
        transmission = super()._make_transmission(handshake)
        if transmission is not None:
            transmission.only_copies()
        return transmission

    def _serve(self, transmission: Transmission) -> bool:
        self._socket.flush()
        return super()._serve(transmission)

    def _make_sender(self) -> Sender:
        return TlsSender(self._socket)

    def _set_events(self, transmission: Transmission) -> None:
        events = 0 if transmission.stalled or transmission.finished else IN
        self._poll(events | OUT if transmission.replies.queue else events)

    def _poll(self, events: int) -> None:
        super()._poll(events | OUT if self._socket.unsent else events)

    # ---- the end ----------------------------------------------------------------------------

    def _finish(self, transmission: Transmission) -> None:
        if not self._socket.unsent or transmission.error:
            super()._finish(transmission)
        elif self.deadline is None:
            self._clients.set_deadline(self, LINGER_SECONDS)

    @property
    def busy(self) -> bool:
        """Whether the client is owed anything."""
        return super().busy or (self._transmission is not None and self._socket.unsent)


class Encryption:
    """How the connections of a server come to TLS.

    Args:
        credentials: what it proves itself with.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._steps: Steps | None = None

    @property
    def mode(self) -> TlsMode:
        """Whether TLS is offered, or required."""
        return self._credentials.options.mode

    def begin(self, loop: Loop) -> None:
        """Clients may come, in this loop."""
        self._steps = Steps(loop)

    def take_over(
        self,
        sock: socket.socket,
        exports: Exports,
        loop: Loop,
        clients: Clients,
        handshake: Handshake,
        deadline: Deadline | None,
    ) -> None:
        """A client has been told that TLS begins."""
        credentials, steps = self._credentials, self._steps
        assert steps is not None
        TlsConnection(sock, exports, loop, clients, handshake, deadline, credentials, steps)

    def reload(self) -> None:
        """Read the files again, for clients that come from now on."""
        wrong = self._credentials.reload()
        if wrong:
            log.error("the certificates stay as they were: %s", wrong)
        else:
            log.info("the certificates were read again")

    def close(self) -> None:
        """All clients were dropped: wait for what threads do for them."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
