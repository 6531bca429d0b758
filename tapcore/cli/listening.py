"""Where a server listens, as the options of `serve` say it."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Final

import click

from tapcore.nbd.listening import (
    DEFAULT_PORT,
    Address,
    OpenSockets,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)
from tapcore.process.activation import activated

LOCAL: Final = "127.0.0.1"


def listening_address(
    path: str | None, bind: str | None, port: int | None, stack: ExitStack | None
) -> Address:
    """Where to listen.

    Args:
        path: what `--socket` says.
        bind: what `--bind` says.
        port: what `--port` says.
        stack: which removes the folder of its own where it listens if nothing is said; None: it
            listens on TCP then.

    Raises:
        UsageError: that cannot be meant.
    """
    name = path.removeprefix("fd:") if path is not None and path.startswith("fd:") else ""
    named = name if name and not name.isdecimal() else ""
    sockets = activated(named)
    if named:
        if not sockets:
            raise click.UsageError(f"LISTEN_FDS is not set; a file of this name is ./{path}")
        return OpenSockets(sockets)
    if path == "":
        raise click.UsageError("--socket needs a path")
    if path is not None and (bind is not None or port is not None):
        raise click.UsageError("--socket is one way to listen, --bind and --port are another")
    given = path is not None or bind is not None or port is not None
    if sockets and given:
        raise click.UsageError("LISTEN_FDS is set: the sockets are there, and no other is opened")
    if sockets:
        return OpenSockets(sockets)
    if not given and stack is not None:
        folder = stack.enter_context(TemporaryDirectory(prefix="tapdisk-"))
        return UnixAddress(f"{folder}/nbd.sock")
    if path is None:
        return TcpAddress(bind or LOCAL, DEFAULT_PORT if port is None else port)
    number = path.removeprefix("fd:")
    if number != path and number.isdecimal() and len(number) < 6:
        return OpenSockets((int(number),))
    port_of_vsock = path.removeprefix("vsock:")
    if port_of_vsock != path:
        return VsockAddress(_vsock_port(port_of_vsock))
    return UnixAddress(path)


def _vsock_port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise click.UsageError("--socket vsock:PORT needs a number; 0 takes any free one")
    return int(text)
