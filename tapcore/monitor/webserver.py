"""A few clients at a time, on loopback, in the loop of who serves or controls disks."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import attrs

from tapcore.engine.loop import OUT, Loop
from tapcore.errors import IOFailedError, describe
from tapcore.monitor import http

log = logging.getLogger(__name__)

LOCAL: Final = "127.0.0.1"
MOST_CLIENTS: Final = 16
"""One more costs the oldest its connection: nobody can keep others out by waiting."""


@attrs.define(eq=False)
class _Client:
    socket: socket.socket
    received: bytes = b""
    sending: memoryview | None = None


class WebServer:
    """Answers one request of each client.

    Args:
        loop: where it lives.
        port: of TCP on loopback; 0: any that is free, which the log tells.
        pages: by their paths.
        closed: called when it has been closed.

    Attributes:
        port: where it listens.

    Raises:
        IOFailedError: the port cannot be had.
    """

    def __init__(
        self, loop: Loop, port: int, pages: http.Pages, closed: Callable[[], object] = lambda: None
    ) -> None:
        self._loop = loop
        self._pages = pages
        self._closed = closed
        self._clients: list[_Client] = []
        self._listener = listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOCAL, port))
            listener.listen(MOST_CLIENTS)
            listener.setblocking(False)
        except OSError as exc:
            listener.close()
            raise IOFailedError(
                f"the port {port} cannot be had for metrics: {describe(exc)}", errno=exc.errno
            ) from None
        self.port: int = listener.getsockname()[1]
        if not port:
            log.warning("metrics are shown at http://%s:%d/", LOCAL, self.port)
        loop.add(listener.fileno(), lambda _: self._accept())

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self._clients) == MOST_CLIENTS:
            self._drop(self._clients[0])
        client = _Client(sock)
        self._clients.append(client)
        self._loop.add(sock.fileno(), partial(self._ready, client))

    def _ready(self, client: _Client, events: int) -> None:
        try:
            if client.sending is None:
                self._receive(client)
            if client.sending is not None:
                self._send(client, client.sending)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _receive(self, client: _Client) -> None:
        data = client.socket.recv(http.MOST_HEAD)
        if not data:
            self._drop(client)
            return
        client.received += data
        if http.whole(client.received):
            client.sending = memoryview(self._answer(client.received))
            self._loop.modify(client.socket.fileno(), OUT)

    def _answer(self, received: bytes) -> bytes:
        try:
            return http.answer(received, self._pages)
        except Exception:  # of a page, which must not cost others their disks
            log.exception("a page of metrics could not be made")
            return http.failed()

    def _send(self, client: _Client, content: memoryview) -> None:
        client.sending = content[client.socket.send(content) :]
        if not client.sending:
            with suppress(OSError):
                client.socket.shutdown(socket.SHUT_WR)
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.remove(client)
        self._loop.remove(client.socket.fileno())
        client.socket.close()

    def close(self) -> None:
        """Answer nobody any more."""
        for client in list(self._clients):
            self._drop(client)
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        self._closed()
