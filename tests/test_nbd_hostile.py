"""Bad clients against a real server: each may hurt itself, and nobody else.

Most of them come to one server, which has a good client all the while: it writes, reads back and
compares, and must never notice anything.
"""

import contextlib
import random
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_client import (
    BLOCK_STATUS,
    DF,
    DISC,
    EINVAL,
    ENOSPC,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Client,
    NbdError,
    connect,
    hello,
    option,
    request,
)
from served import Served, served

KIB, MIB = 1 << 10, 1 << 20
GOOD = MIB
"""The good client's part of the disk, at its start."""


class GoodClient(threading.Thread):
    """Works on the first MiB of the disk until it is told to stop."""

    def __init__(self, uri: str, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._client = Client(uri)
        self._stop_it = threading.Event()
        self.rounds = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._client:
                model = bytearray(self._client.read(0, GOOD))
                while not self._stop_it.wait(0.004):
                    self._round(model)
                assert self._client.read(0, GOOD) == model
        except BaseException as exc:
            self.failure = exc

    def _round(self, model: bytearray) -> None:
        length = self._rng.choice([512, 700, 4096, 50_000, 200_000])
        at = self._rng.randrange(GOOD - length)
        data = self._rng.randbytes(length)
        self._client.write(at, data)
        model[at : at + length] = data
        at = self._rng.randrange(GOOD - length)
        assert self._client.read(at, length) == model[at : at + length]
        self.rounds += 1

    def end(self) -> None:
        self._stop_it.set()
        self.join(60)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure
        assert self.rounds > 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a good client."""
    path = tmp_path_factory.mktemp("hostile")
    (path / "disk.img").write_bytes(random.Random(3).randbytes(4 * MIB))
    with served("disk.img", "--socket", "s", cwd=path) as running:
        good = GoodClient(running.uri, seed=5)
        running.quiet_fds += 1
        good.start()
        try:
            yield running
        finally:
            good.end()


@pytest.fixture(autouse=True)
def same_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test may leave a descriptor open in the server, or make it work without need."""
    if "server" not in request.fixturenames:
        yield
        return
    server: Served = request.getfixturevalue("server")
    server.until(lambda: server.fds == server.quiet_fds)
    yield
    server.until(lambda: server.fds == server.quiet_fds)
    with server.client() as client:
        assert client.read(3 * MIB, 5) is not None


def send_and_go(server: Served, data: bytes) -> None:
    with connect(server.uri) as sock, contextlib.suppress(OSError):
        sock.sendall(data)


def end_of(sock: socket.socket) -> bool:
    """Whether the server closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1 << 20):
            pass
    return True


def ready(server: Served) -> socket.socket:
    """A client past its handshake that is on its own from then on."""
    return Client(server.uri).sock


# ---- what they send ------------------------------------------------------------------------


def test_garbage_in_place_of_a_handshake(server: Served, rng: random.Random) -> None:
    for size in (1, 3, 4, 17, 100, 5000, 200_000):
        with connect(server.uri) as sock, contextlib.suppress(BrokenPipeError):
            sock.sendall(rng.randbytes(size))
            if size > 4:
                assert end_of(sock)
    for flags in (b"\0\0\0\3", b"\0\0\0\0"):
        with connect(server.uri) as sock, contextlib.suppress(BrokenPipeError):
            sock.sendall(flags + rng.randbytes(1000))
            assert end_of(sock)


def test_garbage_in_place_of_requests(server: Served, rng: random.Random) -> None:
    for size in (28, 29, 100, 300_000):
        with ready(server) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(rng.randbytes(size))
            assert end_of(sock)
    with ready(server) as sock, contextlib.suppress(BrokenPipeError):
        sock.sendall(request(READ, 1, 0, 4 * MIB) + rng.randbytes(28))
        assert end_of(sock)


def test_http(server: Served) -> None:
    with connect(server.uri) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert end_of(sock)


@pytest.mark.parametrize(
    "name", ["x" * 3000, "x" * 4096, "\u20ac" * 1300, "../../etc/passwd", "\n"]
)
def test_names_that_do_not_exist(server: Served, name: str) -> None:
    with connect(server.uri) as sock:
        sock.sendall(hello(name))
        sock.shutdown(socket.SHUT_WR)
        assert end_of(sock)
    with connect(server.uri) as sock:
        sock.sendall(b"\0\0\0\3" + option(1, name.encode()))
        assert end_of(sock)


def test_options_of_all_sizes(server: Served) -> None:
    for number in (1, 2, 3, 5, 6, 7, 8, 9, 10, 77):
        for length in (1, 4097, 65537, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF):
            with connect(server.uri) as sock, contextlib.suppress(BrokenPipeError):
                sock.sendall(b"\0\0\0\3" + struct.pack(">8sII", b"IHAVEOPT", number, length))
                sock.sendall(bytes(min(length, 70_000)))


def recorded() -> bytes:
    """Everything that a client may say, once."""
    return hello() + b"".join(
        [
            request(WRITE, 1, 2 * MIB + 7, 600, payload=b"w" * 600),
            request(READ, 2, 2 * MIB, 70_000),
            request(FLUSH, 3),
            request(TRIM, 4, 2 * MIB, 8192),
            request(WRITE_ZEROES, 5, 2 * MIB, 9000),
            request(BLOCK_STATUS, 6, 0, 4 * MIB),
            request(WRITE, 7, 2 * MIB + 512, 140 * KIB, payload=b"s" * (140 * KIB)),
            request(READ, 8, 0, 4 * MIB),
            request(WRITE, 9, 2 * MIB + 3, 140 * KIB, payload=b"s" * (140 * KIB)),
            request(DISC, 10),
        ]
    )


def test_going_away_at_every_byte(server: Served, rng: random.Random) -> None:
    """With replies outstanding, and without having read any."""
    conversation = recorded()
    start = len(hello()) + 28 + 600 + 28 * 5 + 28
    cuts = [*range(start + 30), *(rng.randrange(start, len(conversation)) for _ in range(150))]
    for cut in [*cuts, len(conversation) - 1, len(conversation)]:
        send_and_go(server, conversation[:cut])
    server.sees_an_end()


def send_what_goes(sock: socket.socket, data: bytes) -> None:
    """Until the socket is closed: on a busy machine a thread may not even have begun by then."""
    with contextlib.suppress(OSError):
        sock.sendall(data)


def test_stopping_at_every_kind_of_place(server: Served) -> None:
    """All of them at once, and they stay: it costs nothing, and nobody else notices."""
    conversation = recorded()
    start = len(hello())
    cuts = [0, 2, 4, 10, 20, start - 1, start, start + 1, start + 27, start + 28, start + 300]
    cuts += [start + 628 + 14, len(conversation) - 28 - 300, len(conversation) - 28 - 140_000]
    with contextlib.ExitStack() as stack:
        for cut in cuts:
            sock = stack.enter_context(connect(server.uri))
            threading.Thread(target=send_what_goes, args=(sock, conversation[:cut])).start()
        assert server.idle_for(0.1)


@pytest.mark.parametrize("structured", [True, False])
def test_impossible_ranges(server: Served, structured: bool) -> None:
    with server.client(structured=structured) as client:
        for command in (READ, TRIM, WRITE_ZEROES, BLOCK_STATUS):
            error = ENOSPC if command == WRITE_ZEROES else EINVAL
            if command == BLOCK_STATUS and not structured:
                continue
            for offset in (0, 4 * MIB - 1, 4 * MIB, 1 << 62, (1 << 64) - 4096, (1 << 64) - 1):
                for length in (4 * MIB + 1, 33 * MIB, (1 << 32) - 1):
                    with pytest.raises(NbdError) as raised:
                        client.call(command, offset, length)
                    assert raised.value.code == error
        for offset in (4 * MIB - 511, 4 * MIB, (1 << 64) - 512):
            with pytest.raises(NbdError) as raised:
                client.write(offset, bytes(512))
            assert raised.value.code == ENOSPC
        assert len(client.read(0, 4 * MIB)) == 4 * MIB
    assert server.peak < 100 * MIB


def test_a_write_of_4_gib(server: Served) -> None:
    with ready(server) as sock, contextlib.suppress(BrokenPipeError):
        sock.sendall(request(WRITE, 1, 0, (1 << 32) - 1))
        assert end_of(sock)
    assert server.peak < 100 * MIB


# ---- what they do not do -------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("length", [31 * KIB, 3 * MIB // 2])
def test_never_reading_replies(server: Served, structured: bool, length: int) -> None:
    """It is not read from any more, in bounded memory; when it does read it gets everything."""
    before = server.rss
    with server.client(structured=structured) as client:
        first = client.read(2 * MIB, 20)
        wanted = 40_000
        wire = b"".join(request(READ, n, 2 * MIB + n % 7, length) for n in range(wanted))
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.sock.sendall(wire)
        assert server.idle_for(0.1)
        assert server.rss < before + 120 * MIB
        client.sock.settimeout(60)
        for _ in range(200 if length < MIB else 30):
            header = 28 if structured else 16
            reply = client.exactly(header + length)
            (cookie,) = struct.unpack_from(">Q", reply, 8)
            assert reply[header:][:4] == first[cookie % 7 :][:4]
    server.until(lambda: server.rss < before + 40 * MIB)


def test_never_reading_replies_and_gone(server: Served) -> None:
    for _ in range(20):
        wire = b"".join(request(READ, n, 0, 3 * MIB) for n in range(300))
        with ready(server) as sock:
            sock.sendall(wire)
    server.sees_an_end()


def test_half_closing_after_the_last_request(server: Served) -> None:
    with server.client() as client:
        cookies = [client.send(READ, n, 3 * MIB) for n in range(30)]
        client.send(FLUSH)
        client.sock.shutdown(socket.SHUT_WR)
        assert server.idle_for(0.1)  # it waits for its client, and does not spin
        assert len(client.answer(cookies[-1]).content(29, 3 * MIB)) == 3 * MIB
        assert client.at_end()
        assert client.parser.idle


def test_goodbye_with_requests_in_flight(server: Served) -> None:
    with server.client() as client:
        for n in range(10):
            client.send(READ, n, 3 * MIB)
        client.sock.sendall(request(DISC, 99) + b"anything" * 1000)
        assert client.at_end()
        assert client.parser.idle


def test_goodbye_and_nothing_read(server: Served) -> None:
    """It may take its replies as long as it stays; what it has sent after goodbye is not read."""
    with server.client() as client:
        for n in range(10):
            client.send(READ, n, 3 * MIB)
        client.sock.sendall(request(DISC, 99) + b"anything" * 1000)
        assert server.idle_for(0.1)


def test_idle_in_the_handshake(tmp_path: Path) -> None:
    name = "tapcore.nbd.connection.HANDSHAKE_SECONDS"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            served("ram:1M", "--socket", "s", cwd=tmp_path, changes={name: 0.8})
        )
        with server.client() as good:
            idle = [stack.enter_context(connect(server.uri)) for _ in range(5)]
            for number, sock in enumerate(idle):
                sock.sendall(hello()[: number * 9])
            assert server.idle_for(0.1)
            assert all(end_of(sock) for sock in idle)
            good.write(0, b"x" * 512)


def test_taking_no_replies_after_goodbye(tmp_path: Path) -> None:
    name = "tapcore.nbd.connection.LINGER_SECONDS"
    with served("ram:8M", "--socket", "s", cwd=tmp_path, changes={name: 0.5}) as server:
        fds = server.fds
        with server.client() as client:
            for n in range(5):
                client.send(READ, n, 5 * MIB, flags=DF)
            client.sock.sendall(request(DISC, 99))
            server.until(lambda: server.fds == fds)


# ---- many of them --------------------------------------------------------------------------


def test_300_connections(server: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            sock = stack.enter_context(connect(server.uri))
            sock.sendall(b"\0\0")
        server.until(lambda: server.fds > server.quiet_fds + 200)
        assert server.fds <= server.quiet_fds + 256
        with server.client() as client:  # those that have been idle longest made room
            assert client.size == 4 * MIB
        assert server.idle_for(0.1)


def test_idle_clients_cost_the_others_nothing(tmp_path: Path) -> None:
    with served("ram:1M", "--socket", "s", cwd=tmp_path) as server, server.client() as client:

        def cost() -> float:
            before = server.cpu
            for _ in range(2000):
                client.read(0, 512)
            return server.cpu - before

        alone = cost()
        with contextlib.ExitStack() as stack:
            for _ in range(250):
                stack.enter_context(connect(server.uri))
            server.sees_an_end()
            assert cost() < 3 * alone + 0.03


def test_a_thousand_bad_clients(rng: random.Random, tmp_path: Path) -> None:
    """Nothing stays of them. Their disk answers at once, so that nothing is still under way."""
    conversation = recorded()

    def bad_clients(server: Served, count: int) -> None:
        for number in range(count):
            if number % 3 == 0:
                send_and_go(server, rng.randbytes(rng.randrange(1, 3000)))
            elif number % 3 == 1:
                send_and_go(server, hello() + rng.randbytes(rng.randrange(1, 3000)))
            else:
                send_and_go(server, conversation[: rng.randrange(len(conversation))])
            server.sees_an_end()  # how many are there at once would decide what memory is taken
        server.until(lambda: server.fds == server.quiet_fds)

    with served("ram:4M", "--socket", "s", cwd=tmp_path) as server:
        bad_clients(server, 200)
        before = server.rss
        bad_clients(server, 1000)
        assert server.rss - before < 4 * MIB  # in which garbage may wait to be collected
        assert server.peak < 160 * MIB
        with server.client() as client:
            client.write(0, b"good")
            assert client.read(0, 4) == b"good"


def test_resets_on_tcp(tmp_path: Path, rng: random.Random) -> None:
    conversation = recorded()
    with served("ram:4M", "--port", "0") as server, server.client() as good:
        fds = server.fds
        for _ in range(200):
            with connect(server.uri) as sock, contextlib.suppress(OSError):
                sock.sendall(conversation[: rng.randrange(len(conversation))])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.sees_an_end()
        server.until(lambda: server.fds == fds)
        assert server.idle_for(0.1)
        good.write(0, b"good")
        assert good.read(0, 4) == b"good"


# ---- the whole server ----------------------------------------------------------------------


def test_requests_in_batches_are_all_submitted(tmp_path: Path) -> None:
    """More than may be in flight at once, to a driver that answers a whole batch in one go."""
    with (
        served("slow:1M", "--socket", "s", cwd=tmp_path, slow=0.02) as server,
        server.client() as client,
    ):
        wire = b""
        for n in range(5000):
            client.parser.expect(READ, n, n * 512 % MIB, 512)
            wire += request(READ, n, n * 512 % MIB, 512)
        client.sock.sendall(wire)
        client.wait_until(lambda: client.parser.idle)


def test_gone_while_the_disk_works(tmp_path: Path) -> None:
    """Stalled by its own requests, with more of them unread, and then gone: no reason to spin."""
    with served("slow:4M", "--socket", "s", cwd=tmp_path, slow=0.5) as server:
        fds = server.fds
        with ready(server) as sock:
            sock.settimeout(0.2)
            wire = b"".join(request(WRITE, n, 0, 512, payload=bytes(512)) for n in range(4000))
            with contextlib.suppress(TimeoutError):
                sock.sendall(wire)
        with ready(server) as sock:
            sock.sendall(request(READ, 1, 0, 512) + request(DISC, 2) + b"unread" * 100)
        assert server.idle_for(0.1)
        server.until(lambda: server.fds == fds)
        with server.client() as client:
            assert client.read(0, 5) == bytes(5)


def test_stopped_while_clients_shake_hands(tmp_path: Path) -> None:
    changes = {"tapcore.nbd.server.STOP_SECONDS": 1000.0}
    with (
        contextlib.ExitStack() as stack,
        served("ram:1M", "--socket", "s", cwd=tmp_path, changes=changes) as server,
    ):
        for number in range(200):
            sock = stack.enter_context(connect(server.uri))
            sock.sendall(hello()[: number % (len(hello()) + 1)])
        server.stop()  # at once: it would wait for a client that is owed something


def test_stopped_with_requests_in_flight(tmp_path: Path) -> None:
    """They are answered; one whose data is still to come is not waited for."""
    with (
        contextlib.ExitStack() as stack,
        served("slow:4M", "--socket", "s", cwd=tmp_path, slow=0.2) as server,
    ):
        clients = [stack.enter_context(server.client()) for _ in range(3)]
        for client in clients:
            client.send(WRITE, 0, payload=b"a" * 4096)
            client.send(READ, 8192, 4096)
        half = stack.enter_context(server.client())
        half.sock.sendall(request(WRITE, 1, 0, MIB) + bytes(300_000))
        late = stack.enter_context(server.client())
        late.sock.shutdown(socket.SHUT_WR)
        server.sees_an_end()
        server.stop()
        for client in clients:
            assert client.at_end()
            assert client.parser.idle
            assert not any(answer.error for answer in client.parser.answers.values())


def test_a_client_that_takes_nothing_does_not_stop_the_stop(tmp_path: Path) -> None:
    name = "tapcore.nbd.server.STOP_SECONDS"
    with (
        contextlib.ExitStack() as stack,
        served("ram:8M", "--socket", "s", cwd=tmp_path, changes={name: 0.5}) as server,
    ):
        client = stack.enter_context(server.client())
        for n in range(8):
            client.send(READ, n, 5 * MIB, flags=DF)
        server.sees_an_end()
        server.stop()


def test_out_of_descriptors(tmp_path: Path) -> None:
    """Those that are there go on; it neither spins nor fills the log; later ones come in."""
    with served("ram:1M", "--socket", "s", cwd=tmp_path, quiet=False) as server:
        fds = server.fds
        limit = fds + 8
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        with contextlib.ExitStack() as stack:
            good = [stack.enter_context(server.client()) for _ in range(limit - fds)]
            assert server.fds == limit
            waiting = [stack.enter_context(connect(server.uri)) for _ in range(10)]
            assert server.idle_for(0.3)
            for number, client in enumerate(good):
                client.write(number * 512, b"g" * 512)
            for client in good[:3]:
                client.close()
            waiting[-1].settimeout(60)
            assert len(waiting[-1].recv(18)) == 18  # the last of them; others had to make room
            for sock in waiting:
                sock.close()
            server.until(lambda: server.fds == limit - 3)
            with server.client() as late:
                assert late.read(0, 512) == b"g" * 512
            good[-1].write(0, b"still")
        messages = server.stop()
    assert 1 <= len(messages) < 12
    assert all("Too many open files" in line for line in messages)
