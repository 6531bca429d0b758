"""The listening sockets of a server: who is let in, how many, and when nobody is."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs

from tapcore.engine.loop import IN, Deadline, Loop
from tapcore.nbd.clients import Clients
from tapcore.nbd.listening import (
    Address,
    SocketFile,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    address_of,
    listeners,
)

log = logging.getLogger(__name__)

ACCEPT_AT_ONCE: Final = 64
"""New clients in one batch, so that a flood of them leaves time for those that are there."""

DEAF_SECONDS: Final = 1.0
"""How long nobody is accepted after that failed (there are no descriptors left, say)."""


class Reception:
    """Listens by `listen`, and hears people after `open`.

    Attributes:
        addresses: where it listens; a port that was left open is the one taken.
        place: the file of a Unix socket that it has made.
        deaf: until when nobody is accepted; None: everybody is.
    """

    def __init__(self) -> None:
        self._listeners: list[socket.socket] = []
        self.addresses: list[UnixAddress | TcpAddress | VsockAddress] = []
        self.place = SocketFile("")
        self.deaf: Deadline | None = None

    def listen(self, address: Address) -> None:
        """Make the sockets.

        Raises:
            TapError: the address cannot be used.
        """
        self._listeners = listeners(address)
        self.addresses = [address_of(each) for each in self._listeners]
        if isinstance(address, UnixAddress):
            self.addresses = [address]
            self.place = SocketFile(address.path)
        elif isinstance(address, TcpAddress):  # by the name that was given
            self.addresses = [attrs.evolve(address, port=self._listeners[0].getsockname()[1])]

    def open(
        self, loop: Loop, clients: Clients, most: int, welcome: Callable[[socket.socket], object]
    ) -> None:
        """Accept clients.

        Args:
            loop: in which they are heard.
            clients: those that are there already.
            most: how many there may be.
            welcome: takes a client's socket; an OSError says that it cannot be served.
        """
        self._loop = loop
        self._clients = clients
        self._most = most
        self._welcome = welcome
        for listener in self._listeners:
            loop.add(listener.fileno(), partial(self._accept, listener))

    def leave(self) -> None:
        """Accept nobody any more."""
        self.deaf = None
        for listener in self._listeners:
            self._loop.remove(listener.fileno())
        self.close()

    def close(self) -> None:
        """Give the sockets up; a second call does nothing."""
        for listener in self._listeners:
            listener.close()
        self.place.remove()

    def listen_again(self) -> None:
        """Hear people again, if it is time."""
        if self.deaf is not None and self.deaf.passed:
            self.deaf = None
            self._hear(IN)

    def _hear(self, events: int) -> None:
        for listener in self._listeners:
            self._loop.modify(listener.fileno(), events)

    def _accept(self, listener: socket.socket, _: int) -> None:
        accepted = 0
        while accepted < ACCEPT_AT_ONCE:
            try:
                sock, _peer = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:
                if accepted:  # without a free descriptor it fails even if nobody waits
                    return
                if exc.errno in (errno.EMFILE, errno.ENFILE) and self._drop_an_idle_handshake():
                    continue
                log.warning("a client could not be accepted: %s", exc.strerror)
                self.deaf = Deadline(DEAF_SECONDS)
                self._hear(0)
                return
            accepted += 1
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        if len(self._clients.all) >= self._most and not self._drop_an_idle_handshake():
            log.warning("a client was refused: there are %d already", self._most)
            sock.close()
            return
        try:
            self._welcome(sock)
        except OSError as exc:
            log.warning("a client could not be served: %s", exc.strerror)
            sock.close()

    def _drop_an_idle_handshake(self) -> bool:
        """There is no room: the client that takes longest to choose an export has to go, if any."""
        idle = [client for client in self._clients.deadlines if client.engine is None]
        if idle:
            min(idle, key=lambda client: client.deadline.left if client.deadline else 0.0).drop()
        return bool(idle)
