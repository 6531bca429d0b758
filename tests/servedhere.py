"""A server in a thread of this process: real sockets, and insides that a test can reach."""

import contextlib
import os
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
from nbd_client import Client
from nbdwire import opened

from tapcore.engine import Engine
from tapcore.metrics.publishing import Metrics
from tapcore.nbd.exports import Export, Exports
from tapcore.nbd.listening import UnixAddress
from tapcore.nbd.server import Encryption, NbdServer
from tapcore.tools.ring import serve_ring


@attrs.define(eq=False)
class Here:
    """The running server.

    Attributes:
        engines: of the disks, in order. The server's thread uses them.
    """

    server: NbdServer
    engines: list[Engine]

    def client(
        self, number: int = 0, *, structured: bool = True, tls: ssl.SSLContext | None = None
    ) -> Client:
        """A connection to a disk, past its handshake."""
        return Client(self.server.uris()[number], structured=structured, tls=tls)


@contextlib.contextmanager
def served_here(
    *names: str,
    flags: int = 0,
    filters: tuple[Any, ...] = (),
    metrics: Metrics | None = None,
    ring: Path | None = None,
    encryption: Encryption | None = None,
) -> Iterator[Here]:
    """Serve images (HANDLE:PATH); stopped at the end, as by a signal.

    Args:
        names: of the images.
        flags: to open them with.
        filters: over each.
        metrics: counts what clients do.
        ring: a socket at which the only image is served through rings, too.
        encryption: for clients that want TLS.
    """
    folder = tempfile.TemporaryDirectory(prefix="tapcore-here-")
    with folder as where, ExitStack() as stack:
        states = [stack.enter_context(opened(name, flags, filters=filters)) for name in names]
        exports = [Export.of(state, str(number)) for number, state in enumerate(states)]
        if metrics is not None:
            for export in exports:
                export.count(metrics)
        address = UnixAddress(str(Path(where) / "s"))
        server = NbdServer(Exports(exports), address, metrics=metrics, encryption=encryption)
        if ring is not None:
            serve_ring(server, UnixAddress(str(ring)))
        with running(server):
            yield Here(server, [export.engine for export in exports])


@contextlib.contextmanager
def running(server: NbdServer) -> Iterator[NbdServer]:
    """A server in a thread; stopped at the end, as by a signal. What it raises then is raised."""
    ended = os.eventfd(0)
    server._loop.add(ended, lambda _: server.stop())
    raised: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield server
    finally:
        os.eventfd_write(ended, 1)
        thread.join(60)
        assert not thread.is_alive()
        os.close(ended)
        for exc in raised:
            raise exc
