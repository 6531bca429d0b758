"""Records of TLS: many of them in one call, and what stops that."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
from tlscerts import Authority

from tapcore import TlsMode, TlsOptions
from tapcore.nbd.tlsfiles import Credentials
from tapcore.nbd.tlsrecords import ManyRecords, Records, SingleRecords, Stop


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def options(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> TlsOptions:
    directory = authority.give(tmp_path_factory.mktemp("tls") / "server", "server")
    return TlsOptions(TlsMode.ON, certificates=str(directory))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem.decode())


KINDS = pytest.mark.parametrize("kind", [ManyRecords, SingleRecords])


@pytest.fixture
def pair(options: TlsOptions, tls: ssl.SSLContext) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """A client and a server, past their handshake; the server's does not block."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    context = Credentials(options).context
    server = context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.do_handshake)
    thread.start()
    with tls.wrap_socket(theirs, server_hostname="localhost") as client, server:
        thread.join()
        server.setblocking(False)
        yield client, server


def taken(records: Records) -> bytes:
    """All that has come, up to where it stops."""
    buffer, out = memoryview(bytearray(100_000)), b""
    while True:
        count = records.read(buffer)
        out += bytes(buffer[:count])
        if records.stop is not Stop.FULL and (not count or records.stop is not Stop.END):
            return out


@KINDS
def test_records_are_put_together(
    kind: Callable[[ssl.SSLSocket], Records], pair: tuple[ssl.SSLSocket, ssl.SSLSocket]
) -> None:
    client, server = pair
    sent = bytes(range(251)) * 400
    records = kind(server)
    for size in (1, 28, 4096, 4097, 16384, 16385, 100_000):
        client.sendall(sent[:size])
        assert taken(records) == sent[:size]
        assert records.stop is Stop.WANTS_IN
    records.close()


def test_many_records_are_one_call(pair: tuple[ssl.SSLSocket, ssl.SSLSocket]) -> None:
    client, server = pair
    records, buffer = ManyRecords(server), memoryview(bytearray(100_000))
    client.sendall(bytes(100_000))
    assert (records.read(buffer), records.stop) == (100_000, Stop.FULL)
    records.close()


@KINDS
def test_what_is_sent_arrives_however_slowly_it_is_taken(
    kind: Callable[[ssl.SSLSocket], Records], pair: tuple[ssl.SSLSocket, ssl.SSLSocket]
) -> None:
    client, server = pair
    records, sent = kind(server), bytes(range(251)) * 20_000
    left, got, pushed = memoryview(sent), b"", False
    while left or not pushed:
        with contextlib.suppress(ssl.SSLWantWriteError):
            while left:
                left = left[server.send(left[:300_000]) :]
        pushed = records.push()
        if left or not pushed:
            got += client.recv(1 << 20)
    while len(got) < len(sent):
        got += client.recv(1 << 20)
    assert got == sent
    records.close()


def test_nobody_takes_what_is_sent(pair: tuple[ssl.SSLSocket, ssl.SSLSocket]) -> None:
    client, server = pair
    records = ManyRecords(server)
    server.send(b"some")  # which is kept
    client.close()
    with pytest.raises(BrokenPipeError):
        records.push()
    records.close()


@KINDS
@pytest.mark.parametrize("polite", [True, False])
def test_the_end_comes_behind_what_was_sent(
    polite: bool,
    kind: Callable[[ssl.SSLSocket], Records],
    pair: tuple[ssl.SSLSocket, ssl.SSLSocket],
) -> None:
    client, server = pair
    records = kind(server)
    client.sendall(b"a" * 20_000)
    client.setblocking(False)
    if polite:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.unwrap()
    else:
        client.close()
    for wanted in (b"a" * 20_000, b"", b""):
        assert taken(records) == wanted
        assert records.stop is Stop.END
    records.close()


def test_garbage_is_an_error_behind_what_was_good(
    pair: tuple[ssl.SSLSocket, ssl.SSLSocket],
) -> None:
    client, server = pair
    records, buffer = ManyRecords(server), memoryview(bytearray(100_000))
    client.sendall(b"good")
    with socket.socket(fileno=client.detach()) as plain:
        plain.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
        assert (records.read(buffer), records.stop) == (4, Stop.END)
        for _ in range(2):
            with pytest.raises(ssl.SSLError, match="bad record mac"):
                records.read(buffer)
    records.close()
