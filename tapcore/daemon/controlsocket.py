"""A control socket in a loop: who may ask, how much, and for how long; answers in any order."""

from __future__ import annotations

import array
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import attrs

from tapcore.daemon.jsonrpc import (
    FAILED,
    INVALID_REQUEST,
    MAX_REQUEST,
    Call,
    Lines,
    LineTooLongError,
    RpcError,
    error_line,
    parse_call,
    result_line,
)
from tapcore.daemon.peers import peer_of
from tapcore.daemon.verbs import Later
from tapcore.engine.loop import IN, OUT, Loop
from tapcore.process.timer import Timer

log = logging.getLogger(__name__)

MAX_CLIENTS: Final = 64
MAX_IN_FLIGHT: Final = 16
"""Calls of one client that are not answered yet; more are not read."""

MAX_UNSENT: Final = 1 << 20
"""Bytes of answers that a client does not take, before nothing more is read from it."""

CALLS_AT_ONCE: Final = 16
"""Of one client in one batch: then it is the others' turn."""

MAX_DESCRIPTORS: Final = 8
PATIENCE_SECONDS: Final = 10.0
"""For the rest of a line that has begun, and for a client to take its answers."""

_RECEIVE: Final = 64 << 10


@attrs.frozen
class WithDescriptors:
    """A result, and descriptors that go with it; they stay open here."""

    result: Any
    descriptors: tuple[int, ...]


class ControlClient:
    """One connection.

    Attributes:
        descriptors: that it has sent, for calls that take some.
    """

    def __init__(self, sock: socket.socket, served: ControlSocket) -> None:
        self._socket = sock
        self._served = served
        self._lines = Lines(MAX_REQUEST)
        self._unsent: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._size = 0
        self._events = IN
        self._in_flight = 0
        self._ending = False
        self._more = self._halted = False
        self.open = True
        self.heard = self._since = monotonic()
        self.descriptors: deque[int] = deque()
        served.loop.add(sock.fileno(), self._ready)

    @property
    def idle(self) -> bool:
        """Whether nothing that it has asked for is under way."""
        return not self._in_flight and not self._unsent

    @property
    def late(self) -> bool:
        """Whether it is waited for too long: for the rest of a line, or to take an answer."""
        return self.pending and monotonic() - self._since >= PATIENCE_SECONDS

    @property
    def pending(self) -> bool:
        """Whether it can become late."""
        half = self._lines.begun and not self._halted and not self._more
        return self.open and (half or bool(self._unsent))

    # ---- in ---------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & OUT and self._unsent:
            self._send()
        if self.open and events & ~OUT and not self._ending:
            self._receive()
        if self.open:
            self._take_calls()

    def _receive(self) -> None:
        try:
            data = self._recv()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._ending = True
            return
        self.heard = monotonic()
        if not self.pending:
            self._since = self.heard
        self._lines.receive(data)

    def _recv(self) -> bytes:
        if not self._served.takes_descriptors:
            return self._socket.recv(_RECEIVE)
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        data, ancillary, _, _ = self._socket.recvmsg(_RECEIVE, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self.descriptors.extend(found)
        while len(self.descriptors) > MAX_DESCRIPTORS:
            os.close(self.descriptors.popleft())
        return data

    @property
    def _blocked(self) -> bool:
        return self._in_flight >= MAX_IN_FLIGHT or self._size > MAX_UNSENT

    def _take_calls(self) -> None:
        left = CALLS_AT_ONCE
        self._more = False
        while self.open and not self._blocked:
            if not left:
                self._more = True
                break
            left -= 1
            try:
                line = self._lines.next_line()
            except LineTooLongError as exc:
                self._send_line(error_line(None, RpcError(INVALID_REQUEST, exc.message)))
                self._ending = True
                break
            if line is None:
                break
            self._since = monotonic()
            self._take(line)
        self._go_on()

    def _take(self, line: bytes) -> None:
        try:
            call = parse_call(line)
        except RpcError as exc:
            known = exc.details.pop("id", None)
            self._send_line(error_line(known, exc))
            return
        self._in_flight += 1
        later = self._served.run(call, self)
        later.then(lambda result, error: self._answer(call, result, error))

    # ---- out --------------------------------------------------------------------------------

    def _answer(self, call: Call, result: Any, error: BaseException | None) -> None:
        self._in_flight -= 1
        if not self.open:
            return
        if call.notification:
            if error is not None:
                log.info("a notification '%s' failed: %s", call.method, error)
        elif error is not None:
            self._send_line(error_line(call.id, error))
        elif isinstance(result, WithDescriptors):
            self._send_line(result_line(call.id, result.result), result.descriptors)
        else:
            self._send_line(result_line(call.id, result))
        if self.open:
            self._go_on()

    def _send_line(self, line: bytes, descriptors: tuple[int, ...] = ()) -> None:
        if not self.pending:
            self._since = monotonic()
        self._unsent.append((memoryview(line), descriptors))
        self._size += len(line)
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                line, descriptors = self._unsent[0]
                sent = _sendmsg(self._socket, line, descriptors)
                self._size -= sent
                if sent == len(line):
                    self._unsent.popleft()
                    self.heard = self._since = monotonic()
                else:
                    self._unsent[0] = line[sent:], ()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _go_on(self) -> None:
        """Wait for what can come next."""
        if not self.open:
            return
        # after a halt a whole line may lie here already, of which no event tells: OUT comes at once
        if self._halted and not self._blocked:
            self._more, self._since = self._lines.begun, monotonic()
        self._halted = self._blocked
        if self._ending and self.idle and not self._more:
            self.close()
            return
        reading = not self._blocked and not self._ending
        events = (IN if reading else 0) | (OUT if self._unsent or self._more else 0)
        if events != self._events:
            self._events = events
            self._served.loop.modify(self._socket.fileno(), events)
        if self.pending:
            self._served.look_later()

    def close(self) -> None:
        """Forget the client; what it has asked for goes on."""
        if not self.open:
            return
        self.open = False
        self._served.loop.remove(self._socket.fileno())
        self._served.clients.discard(self)
        self._socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())


def _sendmsg(sock: socket.socket, data: memoryview, descriptors: Sequence[int]) -> int:
    if not descriptors:
        return sock.send(data)
    return socket.send_fds(sock, [data], list(descriptors))


Dispatch = Callable[[Call, ControlClient], Any]


class ControlSocket:
    """A listening socket, and everybody who came.

    Args:
        loop: in which it lives.
        timer: of the same loop.
        listener: a Unix socket that listens and does not block.
        dispatch: does what is asked for; returns a result or a `Later`, or raises.
        takes_descriptors: clients may send some.
    """

    def __init__(
        self,
        loop: Loop,
        timer: Timer,
        listener: socket.socket,
        dispatch: Dispatch,
        *,
        takes_descriptors: bool = False,
    ) -> None:
        self.loop = loop
        self.takes_descriptors = takes_descriptors
        self.clients: set[ControlClient] = set()
        self._timer = timer
        self._listener = listener
        self._dispatch = dispatch
        self._looking = False
        loop.add(listener.fileno(), self._accept)

    def run(self, call: Call, client: ControlClient) -> Later:
        """Do what a client asks for."""
        try:
            found = self._dispatch(call, client)
        except OSError as exc:  # a TapError, most often
            found = Later()
            found.fail(exc)
        except Exception as exc:
            log.exception("'%s' could not be done", call.method)
            found = Later()
            found.fail(exc)
        if isinstance(found, Later):
            return found
        later = Later()
        later.answer(found)
        return later

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE) and self._drop_one():
                return
            log.warning("nobody can be accepted at the control socket: %s", exc.strerror)
            self.loop.modify(self._listener.fileno(), 0)
            self._timer.put(1.0, lambda: self._listen_again())
            return
        sock.setblocking(False)
        peer = peer_of(sock)
        if not peer.trusted:
            log.warning("process %d of user %d was refused", peer.pid, peer.uid)
            _refuse(sock, "this user may not")
        elif len(self.clients) >= MAX_CLIENTS and not self._drop_one():
            _refuse(sock, f"there are {MAX_CLIENTS} clients already")
        else:
            self.clients.add(ControlClient(sock, self))

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.modify(self._listener.fileno(), IN)

    def _drop_one(self) -> bool:
        """Make room: who has been silent longest, and waits for nothing, can come again."""
        idle = [client for client in self.clients if client.idle]
        if idle:
            min(idle, key=lambda client: client.heard).close()
        return bool(idle)

    def look_later(self) -> None:
        """Somebody may become late."""
        if not self._looking:
            self._looking = True
            self._timer.put(PATIENCE_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = False
        for client in list(self.clients):
            if client.late:
                log.info("a client was dropped: it keeps the control socket waiting")
                client.close()
        if any(client.pending for client in self.clients):
            self.look_later()

    def close(self) -> None:
        """Nobody is heard any more."""
        for client in list(self.clients):
            client.close()
        if self._listener.fileno() >= 0:
            self.loop.remove(self._listener.fileno())
            self._listener.close()


def _refuse(sock: socket.socket, why: str) -> None:
    with suppress(OSError):
        refused = RpcError(FAILED, why, errno=errno.EPERM)
        sock.send(error_line(None, refused))
    sock.close()
