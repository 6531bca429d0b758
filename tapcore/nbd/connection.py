"""One client: its socket, its handshake, its requests."""

from __future__ import annotations

import logging
import socket
from typing import Final

from tapcore.engine import Engine
from tapcore.engine.loop import GONE, IN, NOTHING_TO_DO, OUT, Deadline, Loop
from tapcore.nbd.alone import Alone
from tapcore.nbd.clientlog import ClientLog
from tapcore.nbd.clients import Clients
from tapcore.nbd.exports import Exports
from tapcore.nbd.handshake import Handshake, HandshakeState, TlsMode
from tapcore.nbd.negotiation import Negotiation
from tapcore.nbd.sending import SHRUNK, Sender
from tapcore.nbd.startstls import StartsTls
from tapcore.nbd.stream import Stream, set_up
from tapcore.nbd.streaming import StreamedWrite
from tapcore.nbd.transmission import Transmission
from tapcore.nbd.writes import Writes

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
"""A client that has not chosen an export by then is dropped."""

LINGER_SECONDS: Final = 10.0
"""A client that said goodbye gets this long to take the replies that it is owed."""

_MORE_AT_ONCE: Final = 16
"""So often more of a long write is received before others are asked: mostly that is all of it."""


class Connection:
    """Moves bytes between a socket and the two state machines; keeps its poll events right.

    Args:
        sock: accepted, to be closed with the connection.
        exports: what the server offers.
        loop: the poll set.
        clients: the server's; the connection enters and leaves it by itself.
        encryption: for clients that want TLS; None where there is none.
        handshake, deadline: of one that somebody else has begun.

    Attributes:
        deadline: it is closed when this passes, if there is one.
        engine: of the export chosen; None during the handshake.
        open: False once it is closed.
    """

    def __init__(
        self,
        sock: Stream,
        exports: Exports,
        loop: Loop,
        clients: Clients,
        *,
        encryption: StartsTls | None = None,
        handshake: Handshake | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self._socket = sock
        self._exports = exports
        self._loop = loop
        self._clients = clients
        self._encryption = encryption
        tls = TlsMode.OFF if encryption is None else encryption.mode
        self._negotiation: Negotiation | None = Negotiation(
            sock, handshake or Handshake(exports, tls=tls)
        )
        self._transmission: Transmission | None = None
        self._writes: Writes | None = None  # its, which is asked at each event
        self._alone: Alone | None = None
        self._events = IN
        self._sender = self._make_sender()
        self.deadline: Deadline | None = None
        self.engine: Engine | None = None
        self.open = True
        self._told = ClientLog()
        if isinstance(sock, socket.socket):
            set_up(sock)
        loop.add(sock.fileno(), self._ready)
        loop.served += 1
        clients.all.add(self)
        self._clients.set_deadline(self, HANDSHAKE_SECONDS if deadline is None else deadline.left)
        self._begin()

    def _make_sender(self) -> Sender:
        return Sender(self._socket)

    def _begin(self) -> None:
        """The server speaks first."""
        self._send_handshake()

    # ---- events -----------------------------------------------------------------------------

    def _ready(self, events: int) -> object:
        writes = self._writes
        if events == IN and writes is not None:
            if writes.stream is not None:
                placed = self._receive_more(writes.stream)
                if placed:
                    return NOTHING_TO_DO
                if placed is not None and writes.stream is not None:
                    events = 0  # that was all there is
            elif self._alone is not None and self not in self._clients.dirty:
                try:
                    answered = self._alone.receive()
                    if answered:
                        return NOTHING_TO_DO
                    if answered is not None:  # it is parsed
                        events = 0
                        assert self._transmission is not None
                        self._transmission.received(0)
                except Exception:
                    self._fail()
                    return None
        self._clients.dirty.add(self)
        try:
            if events & ~OUT:
                self._receive(events)
            if self.open and events & OUT and self._transmission is None:
                self._send_handshake()
        except Exception:
            self._fail()
        return None

    def _mark(self) -> None:
        self._clients.dirty.add(self)

    def _receive_more(self, stream: StreamedWrite) -> bool | None:
        """In the middle of a write: take what there is of its data, and more while nobody else
        wants anything.

        Returns:
            Whether there is nothing to do but to wait for the rest; None: nothing was received.
        """
        transmission, loop, sock = self._transmission, self._loop, self._socket
        assert transmission is not None
        if transmission.stalled or transmission.replies.queue:
            return None
        fd = sock.fileno()
        try:
            for _ in range(_MORE_AT_ONCE):
                count = sock.recv_into(stream.space())
                if not count:
                    return None
                if not stream.waits(count):
                    return transmission.came(stream, count)
                if not loop.only(fd):
                    break
            return True
        except OSError:
            pass  # whoever tries again hears the same
        except Exception:
            self._fail()
            return True
        return None

    def _receive(self, events: int) -> None:
        transmission = self._transmission
        if transmission is None:
            self._receive_handshake()
            return
        try:
            if transmission.finished or transmission.stalled:  # nothing is wanted from it now
                if events & GONE:
                    self._lose("")
                return
            count = self._socket.recv_into(transmission.space())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._lose(f"connection lost: {exc.strerror}")
            return
        if not count:  # it sends no more; what it has asked for, it may still be waiting for
            transmission.finish()
            return
        transmission.received(count)

    # ---- handshake --------------------------------------------------------------------------

    def _receive_handshake(self) -> None:
        negotiation = self._negotiation
        assert negotiation is not None
        try:
            there = negotiation.receive()
        except OSError as exc:
            self._lose(f"connection lost: {exc.strerror}")
            return
        if there:
            self._send_handshake()
        else:
            self._lose("")

    def _send_handshake(self) -> None:
        negotiation = self._negotiation
        assert negotiation is not None
        handshake = negotiation.handshake
        try:
            sent = negotiation.send()
        except OSError as exc:
            self._lose(f"connection lost: {exc.strerror}")
            return
        if not sent:
            self._poll(IN | OUT if handshake.state is HandshakeState.NEGOTIATING else OUT)
            return
        if handshake.state is HandshakeState.CLOSED:
            self._lose(handshake.error or "")
        elif handshake.state is HandshakeState.TRANSMISSION:
            self._negotiation = None
            self._clients.end_deadline(self)
            transmission = self._make_transmission(handshake)
            if transmission is None:
                self._lose("its export is not there any more")
                return
            self._transmission, self._writes = transmission, transmission.writes
            if isinstance(self._socket, socket.socket):
                self._alone = Alone(self._socket, transmission, self._loop)
            self.engine = transmission.engine
            self._told.chose(handshake, self._socket)
            self._poll(IN)
            self._mark()
        elif handshake.state is HandshakeState.STARTING_TLS:
            self._start_tls(handshake)
        else:
            self._poll(IN)

    def _make_transmission(self, handshake: Handshake) -> Transmission | None:
        negotiated = handshake.negotiated
        assert negotiated is not None
        export = self._exports.get(negotiated.export.name)
        if export is None:
            return None
        return Transmission(
            export, negotiated, self._mark, handshake.leftover, self._clients.budget
        )

    def _start_tls(self, handshake: Handshake) -> None:
        """The end of this connection, though not of its socket."""
        sock, encryption = self._socket, self._encryption
        assert isinstance(sock, socket.socket)
        assert encryption is not None
        self.open, self._negotiation = False, None
        self._loop.remove(sock.fileno())
        self._loop.served -= 1
        self._clients.forget(self)
        try:
            encryption.take_over(
                sock, self._exports, self._loop, self._clients, handshake, self.deadline
            )
        except BaseException:
            sock.close()
            raise

    # ---- replies ----------------------------------------------------------------------------

    def service(self) -> bool:
        """Once after each batch: send, go on where a limit stopped us, close when all is done.

        Returns:
            Whether new requests were taken, so that the engine has to have another turn.
        """
        transmission = self._transmission
        if transmission is None:
            return False
        try:
            return self._serve(transmission)
        except Exception:
            self._fail()
            return False

    def go_on(self) -> None:
        """Begin the next piece of requests that are too long for one go."""
        if self._transmission is None:
            return
        self._mark()
        try:
            self._transmission.go_on()
        except Exception:
            self._fail()

    def _serve(self, transmission: Transmission) -> bool:
        if transmission.unfinished:
            self._clients.unfinished.add(self)
        asked = False
        if transmission.replies.queue:
            try:
                asked = self._sender.send(transmission)
            except OSError as exc:
                self._lose(f"connection lost: {exc.strerror}")
                return False
        if transmission.resume() or asked:
            self._set_events(transmission)
            return True
        if transmission.finished:
            self._finish(transmission)
            if not self.open:
                return False
        self._set_events(transmission)
        return False

    def _set_events(self, transmission: Transmission) -> None:
        if self._events == IN and not (
            transmission.stalled or transmission.finished or transmission.replies.queue
        ):
            return  # nearly always
        # one who has said goodbye may close its end: that is no event of interest
        events = 0 if transmission.stalled or transmission.finished else IN
        if transmission.replies.queue:
            events |= OUT
        self._poll(events)

    def _finish(self, transmission: Transmission) -> None:
        if transmission.error:
            self._lose(transmission.error)
        elif not transmission.in_flight and not transmission.replies.queue:
            self._lose("")
        elif self.deadline is None:
            self._clients.set_deadline(self, LINGER_SECONDS)

    # ---- the end ----------------------------------------------------------------------------

    def check_deadline(self) -> None:
        """Close the connection if its moment has passed."""
        if self.deadline is None or not self.deadline.passed:
            return
        if self._transmission is None:
            self._lose("chose no export in time")
        elif not self._transmission.in_flight:
            self._lose("did not take its replies")
        else:
            self._clients.set_deadline(self, LINGER_SECONDS)

    def hold_changed(self) -> None:
        """See `Client`."""
        if self._transmission is not None:
            self._transmission.hold_changed()
            self._mark()

    def let_go_of_files(self) -> None:
        """See `Client`."""
        transmission = self._transmission
        if transmission is not None and not transmission.let_go_of_files():
            self._lose(SHRUNK)

    @property
    def busy(self) -> bool:
        """Whether the client is owed anything."""
        transmission = self._transmission
        return transmission is not None and bool(
            transmission.in_flight or transmission.replies.queue
        )

    def took_nothing(self, rounds: int) -> bool:
        """See `Client`."""
        transmission = self._transmission
        return transmission is not None and self._sender.took_nothing(transmission.replies, rounds)

    def finish(self) -> None:
        """The server stops: take no more requests, answer those that were taken."""
        if self._transmission is None:
            self._lose("")
            return
        self._transmission.finish()
        self._mark()

    def _poll(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._loop.modify(self._socket.fileno(), events)

    def drop(self) -> None:
        """Close now, whatever the client is owed."""
        self._lose("the server needs the connection")

    def _fail(self) -> None:
        """A bug, of ours or of a driver; it costs this client, and nobody else."""
        log.exception("client dropped: its request could not be handled")
        self._lose("")

    def _lose(self, why: str) -> None:
        if not self.open:
            return
        self.open = False
        self._told.left(why)
        self._loop.remove(self._socket.fileno())
        self._loop.served -= 1
        self._clients.forget(self)
        self._socket.close()
        # each knows the other: let go, so that they are freed now and not by some later collection
        transmission, self._transmission, self._negotiation = self._transmission, None, None
        self._writes = self._alone = None
        if transmission is not None:
            try:
                transmission.gone()
            except Exception:
                log.exception("a dropped client's memory could not be given back")
