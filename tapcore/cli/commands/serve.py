"""`tapdisk serve`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from tapcore.cli.background import background_options
from tapcore.cli.listening import LOCAL, listening_address
from tapcore.cli.logplace import log_option, log_to
from tapcore.cli.options import (
    cache_option,
    completes,
    filter_option,
    image_argument,
    opening_options,
    ring_option,
    tap_command,
)
from tapcore.cli.sizes import Size, metadata_cache_option
from tapcore.errors import TapError
from tapcore.interface.access import Access
from tapcore.interface.options import CacheMode
from tapcore.nbd.handshake import TlsMode
from tapcore.nbd.listening import DEFAULT_PORT, EVERYWHERE, TcpAddress, UnixAddress
from tapcore.nbd.server import MAX_CONNECTIONS, NbdServer
from tapcore.nbd.tlsoptions import TlsOptions
from tapcore.process.activation import tell_ready
from tapcore.process.background import PidFile, in_background
from tapcore.process.captive import Captive
from tapcore.process.parent import end_with_parent
from tapcore.process.stopping import STOP_SIGNALS
from tapcore.tools.serve import Overlay, nbd_server

if TYPE_CHECKING:
    from tapcore.process.confinement import User
    from tapcore.tools.confined import ConfinedServer

log = logging.getLogger(__name__)

_OPEN_TO_ALL = "%s: whoever reaches this machine may %s; TLS keeps others out (--tls-certificates)"
MOST_CONNECTIONS = 4096
LEAST_MEMORY = 64 << 20


@tap_command("serve")
@image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--socket",
    metavar="PATH|fd:N|fd:NAME|vsock:PORT",
    shell_complete=completes("file"),
    help="Listen on this Unix socket (mode 0600), on an open one of any kind by its number, or by "
    "its name (LISTEN_FDNAMES), or on vsock.",
)
@click.option("--bind", metavar="ADDR", help=f"Listen on TCP, here.  [default: {LOCAL}]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"TCP port; 0 takes any free one.  [default: {DEFAULT_PORT}]",
)
@ring_option
@click.option("--read-only", "-r", is_flag=True, help="Refuse writes.")
@click.option(
    "--export",
    "names",
    multiple=True,
    metavar="NAME",
    help="Name of the export; once for each IMAGE. Without it a single IMAGE is the default "
    "export, and several have the names of their files.",
)
@click.option(
    "--overlay",
    type=click.Choice(["connection", "name"]),
    is_flag=False,
    flag_value="connection",
    help="Images are not written: clients write into views, which are gone at the end. One for "
    "each connection, as where no word follows, or one for each export NAME@VIEW that clients ask "
    "for.",
)
@click.option(
    "--overlay-dir",
    metavar="DIR",
    shell_complete=completes("directory"),
    help="Views keep what is written to them in files without a name, here.  [default: memory]",
)
@click.option(
    "--overlay-limit",
    metavar="SIZE",
    type=Size(),
    help="What may be written to each view, above it there is no space left.  [default: 1G]",
)
@click.option(
    "--keep",
    metavar="HANDLE:DIR",
    shell_complete=completes("directory"),
    help="Make an image of each view that was written to, when it ends.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, MOST_CONNECTIONS),
    default=MAX_CONNECTIONS,
    show_default=True,
    help="Clients at a time; one more is refused.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    type=Size(),
    default="256M",
    show_default=True,
    help="For the requests of all clients together, at least 64M.",
)
@click.option(
    "--idle-timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="Stop when nobody was connected for so long.",
)
@click.option(
    "--run",
    "captive",
    metavar="COMMAND",
    help="Run a command of the shell, in which $uri is the export's, and stop when it ends, with "
    "its exit status. Without an address the socket is a new one.",
)
@background_options
@click.option("--exit-with-parent", is_flag=True, help="Stop when the process that began it ends.")
@click.option(
    "--tls",
    type=click.Choice([mode.value for mode in TlsMode]),
    help="Encryption: none, for clients that want it, or for all.  [default: off; with another "
    "--tls option: require]",
)
@click.option(
    "--tls-certificates",
    metavar="DIR",
    shell_complete=completes("directory"),
    help="Where server-cert.pem and server-key.pem lie, and ca-cert.pem for clients' certificates.",
)
@click.option(
    "--tls-verify-peer", is_flag=True, help="Clients need a certificate that ca-cert.pem signed."
)
@click.option(
    "--tls-allow",
    "subjects",
    multiple=True,
    metavar="SUBJECT",
    help="Only clients whose certificate has this subject (RFC 2253: CN=...,O=...) may come.",
)
@click.option(
    "--tls-psk",
    metavar="FILE",
    shell_complete=completes("file"),
    help="Pre-shared keys instead of certificates, NAME:KEY a line, as psktool writes them.",
)
@click.option(
    "--confine",
    is_flag=True,
    help="Once it is ready, give up all other files, new programs, sockets and processes: Landlock "
    "and seccomp, as far as the kernel has them.",
)
@click.option(
    "--user",
    metavar="NAME",
    help="With --confine, as root: go on as this user, who has to be able to read the files again.",
)
@click.option(
    "--metrics",
    metavar="FILE|DIR|PORT",
    shell_complete=completes("file"),
    help="Count requests, and show that in this file, in one for each export in a directory, or "
    "on a port of loopback: / for a browser, /metrics for Prometheus.",
)
@log_option
@filter_option
@cache_option
@metadata_cache_option
@opening_options
def command(
    images: tuple[str, ...],
    socket: str | None,
    bind: str | None,
    port: int | None,
    ring: str,
    read_only: bool,
    names: tuple[str, ...],
    overlay: str | None,
    overlay_dir: str | None,
    overlay_limit: int | None,
    keep: str | None,
    max_connections: int,
    max_memory: int,
    idle_timeout: float | None,
    captive: str | None,
    fork: bool,
    pid_file: str | None,
    exit_with_parent: bool,
    tls: str | None,
    tls_certificates: str | None,
    tls_verify_peer: bool,
    subjects: tuple[str, ...],
    tls_psk: str | None,
    confine: bool,
    user: str | None,
    metrics: str | None,
    log_place: str,
    filters: tuple[str, ...],
    cache: CacheMode,
    metadata_cache: int | None,
    access: Access,
) -> int:
    """Serve images over NBD until SIGTERM, SIGHUP or Ctrl-C; a second signal ends it at once.

    Once it is ready, one NBD URI for each image is printed on standard output. With TLS, SIGHUP
    reads the certificates again.
    """
    # As long as it is by its options, each of which goes on as it came.
    if fork and (captive is not None or exit_with_parent):
        raise click.UsageError("--fork does not go with --run and --exit-with-parent")
    if max_memory < LEAST_MEMORY:
        raise click.UsageError("--max-memory has to be 64M at least: one request may have 32M")
    if confine and captive is not None:
        raise click.UsageError("--confine does not go with --run: the command could not be ended")
    if user is not None and not confine:
        raise click.UsageError("--user needs --confine")
    if ring and (len(images) > 1 or overlay is not None):
        raise click.UsageError("--ring is for a single IMAGE, and goes without --overlay")
    whose = None if user is None else _user(user)
    encryption = _tls(tls, tls_certificates, tls_verify_peer, subjects, tls_psk)
    log_to(log_place)
    views = _overlay(overlay, overlay_dir, overlay_limit, keep, read_only=read_only)
    if exit_with_parent:
        end_with_parent()
    with ExitStack() as stack:
        address = listening_address(socket, bind, port, stack if captive is not None else None)
        if encryption is None and isinstance(address, TcpAddress) and address.host in EVERYWHERE:
            log.warning(_OPEN_TO_ALL, address.host, "read" if read_only else "read and write")
        ready = in_background() if fork else None
        server = nbd_server(
            images,
            address,
            names=names,
            readonly=read_only,
            cache=cache,
            metadata_cache=metadata_cache,
            parents=access.references,
            keys=access.keys,
            filters=filters,
            signals=STOP_SIGNALS,
            tls=encryption,
            max_connections=max_connections,
            idle_seconds=idle_timeout,
            overlay=views,
            max_memory=max_memory,
            metrics=metrics,
        )
        if ring:
            _serve_ring(server, ring)
        confined = _confined(server, views, encryption, whose) if confine else None
        return _serve(server, captive, ready, pid_file, confined)


def _serve_ring(server: NbdServer, path: str) -> None:
    from tapcore.tools.ring import serve_ring  # costs an import of json and ctypes

    try:
        serve_ring(server, listening_address(path, None, None, None))
    except BaseException:
        server.stop()
        server.run()
        raise


def _serve(
    server: NbdServer,
    command: str | None,
    ready: Callable[[], None] | None,
    pid_file: str | None,
    confined: ConfinedServer | None,
) -> int:
    """Tell where it is, and serve; returns the exit status."""
    captive: Captive | None = None
    written: PidFile | None = None
    try:
        if pid_file is not None:
            written = PidFile(pid_file)
        if command is None:
            for uri in server.uris():
                click.echo(uri)
        else:
            captive = Captive(command, _variables(server))
            server.stop_when(captive.fileno())
        tell_ready()
        if ready is not None:
            ready()
    except BaseException:  # nobody can know where it is
        server.stop()
        _end(server, captive, written)
        raise
    try:
        if confined is not None:
            confined.files = () if written is None else (written.path,)
        return _end(confined or server, captive, written)
    except TapError as exc:
        if ready is not None:  # who would print it has no terminal any more
            log.error("%s", exc)
        raise


def _user(name: str) -> User:
    from tapcore.process.confinement import User  # costs an import of ctypes

    return User.named(name)


def _confined(
    server: NbdServer, views: Overlay | None, encryption: TlsOptions | None, user: User | None
) -> ConfinedServer:
    from tapcore.tools.confined import ConfinedServer

    return ConfinedServer(server, views, encryption, user)


def _end(
    server: NbdServer | ConfinedServer, captive: Captive | None, written: PidFile | None
) -> int:
    try:
        server.run()
    finally:
        if written is not None:
            written.remove()
        status = 0 if captive is None else captive.end()
    return status


def _variables(server: NbdServer) -> dict[str, str]:
    """What a command finds: the names are nbdkit's."""
    place = server.addresses[0]
    found = {"uri": server.uris()[0]}
    if isinstance(place, UnixAddress):
        found["unixsocket"] = os.path.abspath(place.path)
    else:
        found["port"] = str(place.port)
    return found


def _overlay(
    kind: str | None,
    directory: str | None,
    limit: int | None,
    keep: str | None,
    *,
    read_only: bool,
) -> Overlay | None:
    if kind is None:
        if directory is not None or limit is not None or keep is not None:
            raise click.UsageError("--overlay-dir, --overlay-limit and --keep need --overlay")
        return None
    if read_only:
        raise click.UsageError("--overlay is for writing, --read-only against it")
    kept = None
    if keep is not None:
        handle, colon, where = keep.partition(":")
        if not (handle and colon and where):
            raise click.UsageError("--keep needs HANDLE:DIR, as qcow2:/vm/kept")
        kept = handle, where
    return Overlay(kind == "name", directory or "", limit, kept)


def _tls(
    mode: str | None,
    certificates: str | None,
    verify_peer: bool,
    subjects: tuple[str, ...],
    psk: str | None,
) -> TlsOptions | None:
    if mode is None and not (certificates or verify_peer or subjects or psk):
        return None
    if mode == TlsMode.OFF.value:
        return None
    if not certificates and not psk:
        raise click.UsageError("TLS needs --tls-certificates DIR or --tls-psk FILE")
    if psk and (certificates or verify_peer or subjects):
        raise click.UsageError("--tls-psk is one way to know each other, certificates are another")
    chosen = TlsMode(mode or TlsMode.REQUIRE.value)
    return TlsOptions(chosen, certificates or "", verify_peer, subjects, psk or "")
