"""What the log tells of a client: that it came, which export it uses, that it has gone."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from itertools import count
from typing import Final

from tapcore.errors import printable
from tapcore.nbd.handshake import Handshake

log = logging.getLogger(__name__)

_NUMBERS: Final = count(1)


class ClientLog:
    """Of one connection, by a number; nothing is said of one that only asked what there is."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        self._number = 0

    def chose(self, handshake: Handshake, sock: object) -> None:
        """It uses an export from now on."""
        if handshake.negotiated is None or not log.isEnabledFor(logging.INFO):
            return
        self._number = next(_NUMBERS)
        name = printable(handshake.negotiated.export.name)
        log.info("client %d%s uses the export '%s'", self._number, _whence(sock), name)

    def left(self, why: str) -> None:
        """It is gone; `why` where that was not its wish."""
        if why:
            log.info("client dropped: %s", why)
        if self._number:
            log.info("client %d has gone", self._number)


def _whence(sock: object) -> str:
    """Where a client of TCP is; "" for one of this machine, or behind TLS."""
    if isinstance(sock, socket.socket) and sock.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            host, port = sock.getpeername()[:2]
            return f" ({host} port {port})"
    return ""
