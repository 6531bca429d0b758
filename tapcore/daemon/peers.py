"""Who is at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

import attrs

_CREDENTIALS: Final = struct.Struct("3i")


@attrs.frozen
class Peer:
    """A process, as it was when it connected.

    Attributes:
        pid: its number.
        uid: its user.
    """

    pid: int
    uid: int

    @property
    def trusted(self) -> bool:
        """Whether it may do what this process may: the same user, or root."""
        return self.uid in (0, os.geteuid())


def peer_of(sock: socket.socket) -> Peer:
    """The other end of a connection (SO_PEERCRED of unix(7))."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(found)
    return Peer(pid, uid)
