"""What a connection hands its client over to, when that one asks for TLS."""

from __future__ import annotations

import socket
from typing import Protocol

from tapcore.engine.loop import Deadline, Loop
from tapcore.nbd.clients import Clients
from tapcore.nbd.exports import Exports
from tapcore.nbd.handshake import Handshake, TlsMode


class StartsTls(Protocol):
    """What goes on with clients that want TLS."""

    @property
    def mode(self) -> TlsMode:
        """Whether it is offered, or required."""

    def take_over(
        self,
        sock: socket.socket,
        exports: Exports,
        loop: Loop,
        clients: Clients,
        handshake: Handshake,
        deadline: Deadline | None,
    ) -> None:
        """A client has been told that TLS begins: another `Connection` has its socket now."""
