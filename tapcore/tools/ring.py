"""A ring beside an NBD server: the same disk, in the same loop."""

from __future__ import annotations

import socket

from tapcore.errors import UsageError
from tapcore.nbd.listening import Address, SocketFile, UnixAddress, listeners
from tapcore.nbd.server import NbdServer
from tapcore.ring.server import RingServer


def serve_ring(server: NbdServer, address: Address) -> RingServer:
    """Serve the disk of a server through shared rings as well; they end with it.

    Args:
        server: of one disk.
        address: a Unix socket, by its path or open already.

    Raises:
        TapError: the address cannot be used, or the kernel lacks what is needed.
    """
    exports = server.exports.all
    if len(exports) != 1:
        raise UsageError("a ring is of one disk")
    (listener,) = listeners(address)
    place = SocketFile(address.path) if isinstance(address, UnixAddress) else None
    try:
        if listener.family != socket.AF_UNIX:
            raise UsageError("a ring needs a Unix socket, for descriptors")
        export = exports[0]
        ring = RingServer(export.engine, server.loop, listener, place=place, meter=export.meter)
    except BaseException:
        listener.close()
        if place is not None:
            place.remove()
        raise
    server.beside.append(ring)
    return ring
