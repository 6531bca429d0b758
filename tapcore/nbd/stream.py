"""A client's socket, as far as a connection knows it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final, Protocol

SEND_BUFFER: Final = 2 << 20
"""Socket buffer asked for: a reply of 1 MiB should be handed over in one go."""

_SO_SNDBUFFORCE: Final = 32  # Linux; needs CAP_NET_ADMIN


class Stream(Protocol):
    """As much of a socket that does not block as a connection uses."""

    def fileno(self) -> int:
        """Its descriptor."""

    def recv(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """The same; returns how many."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Returns how many bytes were taken."""

    def sendmsg(
        self, buffers: Sequence[bytes | memoryview], ancillary: tuple[()], flags: int, /
    ) -> int:
        """The same."""

    def close(self) -> None:
        """Give it up."""


def set_up(sock: socket.socket) -> None:
    """A socket that was just accepted: it does not block, and sends at once."""
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _widen(sock)


def _widen(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
