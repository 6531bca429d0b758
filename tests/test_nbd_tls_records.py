"""Records of TLS: many of them in one call, and what stops that."""

import contextlib
import ctypes
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from nbd_client import connect, option
from servedhere import Here, served_here
from tlscerts import Authority

from tapcore import TlsMode, TlsOptions
from tapcore.nbd.openssl import connection_of, library
from tapcore.nbd.tlsconnection import Encryption
from tapcore.nbd.tlsfiles import Credentials
from tapcore.nbd.tlsrecords import ManyRecords, Records, SingleRecords, Stop, go_back_often

ACK_OF_ABORT = struct.pack(">QIII", 0x0003E889045565A9, 2, 1, 0)


def half_way(here: Here) -> socket.socket:
    """A client that is to speak TLS now."""
    sock = connect(here.server.uris()[0])
    assert len(sock.recv(18, socket.MSG_WAITALL)) == 18
    sock.sendall(struct.pack(">I", 3) + option(5))
    assert len(sock.recv(20, socket.MSG_WAITALL)) == 20
    return sock


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


def send_new_keys(client: socket.socket, count: int) -> None:
    """Records without content."""
    assert isinstance(client, ssl.SSLSocket)
    known, (_, address) = library(), connection_of(client)
    for function, taken_by_it in [
        (known.SSL_key_update, [ctypes.c_void_p, ctypes.c_int]),
        (known.SSL_do_handshake, [ctypes.c_void_p]),
    ]:
        function.argtypes = taken_by_it
    for _ in range(count):
        assert known.SSL_key_update(address, 0) == 1
        assert known.SSL_do_handshake(address) == 1


@KINDS
def test_new_keys_one_at_a_time(
    kind: Callable[[ssl.SSLSocket], Records], pair: tuple[ssl.SSLSocket, ssl.SSLSocket]
) -> None:
    """However many there are, each call ends, and the next one goes on."""
    client, server = pair
    go_back_often(server)
    records, buffer = kind(server), memoryview(bytearray(100))
    client.sendall(b"a")
    send_new_keys(client, 20)
    client.sendall(b"b")
    got, calls = b"", 0
    while got != b"ab":
        got += bytes(buffer[: records.read(buffer)])
        calls += 1
    assert calls >= 20
    if kind is SingleRecords:  # an event tells of the rest
        assert records.stop is Stop.WANTS_IN
    assert (records.read(buffer), records.stop) == (0, Stop.WANTS_IN)
    records.close()


def test_a_client_that_sends_new_keys_is_served(
    options: TlsOptions, tls: ssl.SSLContext, rng: random.Random
) -> None:
    """Before it has chosen an export, and after; nobody waits for more than one of them."""
    data = rng.randbytes(300_000)
    with served_here("ram:1M", encryption=Encryption(Credentials(options))) as here:
        sock = half_way(here)
        with here.client() as other, tls.wrap_socket(sock, server_hostname="localhost") as early:
            send_new_keys(early, 100)
            early.sendall(option(2))
            assert early.recv(20) == ACK_OF_ABORT
            with here.client(tls=tls) as client:
                send_new_keys(client.sock, 100)
                client.write(0, data)
                send_new_keys(client.sock, 100)
                assert client.read(0, len(data)) == other.read(0, len(data)) == data


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
