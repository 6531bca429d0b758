"""`tapdisk serve`."""

from __future__ import annotations

import click

from tapcore.cli.options import (
    cache_option,
    completes,
    image_argument,
    metadata_cache_option,
    opening_options,
    tap_command,
)
from tapcore.interface.access import Access
from tapcore.interface.options import CacheMode
from tapcore.nbd.handshake import TlsMode
from tapcore.nbd.listening import DEFAULT_PORT, TcpAddress, UnixAddress
from tapcore.nbd.tlsoptions import TlsOptions
from tapcore.process.stopping import STOP_SIGNALS
from tapcore.tools.serve import nbd_server

LOCAL = "127.0.0.1"


@tap_command("serve")
@image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--socket",
    metavar="PATH",
    shell_complete=completes("file"),
    help="Listen on this Unix socket (mode 0600).",
)
@click.option("--bind", metavar="ADDR", help=f"Listen on TCP, here.  [default: {LOCAL}]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"TCP port; 0 takes any free one.  [default: {DEFAULT_PORT}]",
)
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
@cache_option
@metadata_cache_option
@opening_options
def command(
    images: tuple[str, ...],
    socket: str | None,
    bind: str | None,
    port: int | None,
    read_only: bool,
    names: tuple[str, ...],
    tls: str | None,
    tls_certificates: str | None,
    tls_verify_peer: bool,
    subjects: tuple[str, ...],
    tls_psk: str | None,
    cache: CacheMode,
    metadata_cache: int | None,
    access: Access,
) -> None:
    """Serve images over NBD until SIGTERM, SIGHUP or Ctrl-C; a second signal ends it at once.

    Once it is ready, one NBD URI for each image is printed on standard output. With TLS, SIGHUP
    reads the certificates again.
    """
    if socket == "":
        raise click.UsageError("--socket needs a path")
    if socket is not None and (bind is not None or port is not None):
        raise click.UsageError("--socket is one way to listen, --bind and --port are another")
    address = UnixAddress(socket) if socket is not None else _tcp(bind, port)
    server = nbd_server(
        images,
        address,
        names=names,
        read_only=read_only,
        cache=cache,
        metadata_cache=metadata_cache,
        references=access.references,
        keys=access.keys,
        signals=STOP_SIGNALS,
        tls=_tls(tls, tls_certificates, tls_verify_peer, subjects, tls_psk),
    )
    try:
        for uri in server.uris():
            click.echo(uri)
    except BaseException:  # nobody can know where it is
        server.stop()
        server.run()
        raise
    server.run()


def _tcp(bind: str | None, port: int | None) -> TcpAddress:
    return TcpAddress(bind or LOCAL, DEFAULT_PORT if port is None else port)


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
