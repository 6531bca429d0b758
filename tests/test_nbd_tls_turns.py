"""TLS beside other clients: whose turn it is, what memory there is for it, and what threads do."""

import contextlib
import os
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from nbd_client import WRITE, connect, option, request
from servedhere import Here, served_here
from tlscerts import Authority

from tapcore import TlsMode, TlsOptions
from tapcore.nbd import tlsconnection, tlssteps
from tapcore.nbd.tlsconnection import Encryption, TlsConnection
from tapcore.nbd.tlsfiles import Credentials
from tapcore.nbd.tlsrecords import MANY, ManyRecords, SingleRecords, Stop
from tapcore.nbd.tlssocket import HELD, TlsSocket
from tapcore.nbd.tlssteps import Step, Steps
from tapcore.nbd.writes import WIDE

KIB = 1 << 10
ACK_OF_ABORT = struct.pack(">QIII", 0x0003E889045565A9, 2, 1, 0)


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


@contextlib.contextmanager
def serving(options: TlsOptions) -> Iterator[Here]:
    with served_here("ram:1M", encryption=Encryption(Credentials(options))) as here:
        yield here


def the_secure(here: Here) -> TlsConnection:
    """Its only connection with TLS."""
    (found,) = (each for each in here.server._clients.all if isinstance(each, TlsConnection))
    return found


def half_way(here: Here) -> socket.socket:
    """A client that is to speak TLS now."""
    sock = connect(here.server.uris()[0])
    assert len(sock.recv(18, socket.MSG_WAITALL)) == 18
    sock.sendall(struct.pack(">I", 3) + option(5))
    assert len(sock.recv(20, socket.MSG_WAITALL)) == 20
    return sock


@attrs.frozen
class Gate:
    """The first step of a handshake waits at it."""

    reached: threading.Event = attrs.field(factory=threading.Event)
    open: threading.Event = attrs.field(factory=threading.Event)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate, shake_hands = Gate(), TlsSocket.shake_hands

    def waiting(sock: TlsSocket) -> bool:
        if not gate.reached.is_set():
            gate.reached.set()
            assert gate.open.wait(60)
        return shake_hands(sock)

    monkeypatch.setattr(TlsSocket, "shake_hands", waiting)
    return gate


class Shaking(threading.Thread):
    """A client's handshake of TLS, and a question after it.

    Attributes:
        answered: what came back; nothing where it was cut off.
    """

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._sock, self._tls = sock, tls
        self.answered = b""
        self.start()

    def run(self) -> None:
        with (
            contextlib.suppress(OSError),
            self._tls.wrap_socket(self._sock, server_hostname="localhost") as secure,
        ):
            secure.sendall(option(2))
            self.answered = secure.recv(20)


# ---- turns -----------------------------------------------------------------------------------


class Endless:
    """What comes from a client that sends requests more quickly than they are answered."""

    def __init__(self) -> None:
        self.stop = Stop.FULL
        self.calls = 0
        self._sent = request(99, 1, 0, 0)

    def read(self, buffer: memoryview) -> int:
        self.calls += 1
        buffer[: len(self._sent)] = self._sent
        return len(self._sent)

    def push(self) -> bool:
        return True

    def close(self) -> None:
        """It holds nothing."""


@pytest.mark.parametrize("alone", [False, True])
def test_who_sends_all_the_time_does_not_keep_others_from_their_turn(
    alone: bool, options: TlsOptions, tls: ssl.SSLContext
) -> None:
    """No event tells of what was received already: all the same others are looked at meanwhile.

    Where there is nobody else who could wait, turns are twice as long.
    """
    looks: list[int] = []
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(serving(options))
        flood = stack.enter_context(here.client(tls=tls))
        other = None if alone else stack.enter_context(here.client())
        endless = Endless()
        sock = the_secure(here)._socket
        sock.wide, sock._records = True, endless
        here.server.loop.timeouts.append(lambda: looks.append(endless.calls))
        flood.sock.sendall(b"anything")
        while endless.calls < 1000:
            assert other is None or other.read(0, 512) == bytes(512)
    turns = [after - before for before, after in pairwise(looks)]
    longest = tlsconnection._IN_A_ROW * (2 if alone else 1)
    assert longest <= max(turns) <= longest + 1


def test_a_long_negotiation_in_one_go(options: TlsOptions, tls: ssl.SSLContext) -> None:
    """More than is taken at once is in one record already, and no event tells of the rest."""
    with (
        serving(options) as here,
        tls.wrap_socket(half_way(here), server_hostname="localhost") as secure,
    ):
        secure.sendall(option(77, bytes(1000)) * 12 + option(2))
        answers = b""
        while not answers.endswith(ACK_OF_ABORT):
            answers += secure.recv(64 * KIB)
        assert answers.count(struct.pack(">QI", 0x0003E889045565A9, 77)) == 12


@pytest.mark.parametrize("handle", ["aio", "ram"])
def test_several_long_writes_come_at_once(
    handle: str, options: TlsOptions, tls: ssl.SSLContext, tmp_path: Path, rng: random.Random
) -> None:
    """Into memory that is counted, among those that are too long, too short, and not aligned."""
    image = tmp_path / "image"
    image.write_bytes(model := bytearray(rng.randbytes(4 << 20)))
    encryption = Encryption(Credentials(options))
    with served_here(f"{handle}:{image}", encryption=encryption) as here, here.client() as other:
        budget = here.server._clients.budget
        room = budget.room
        with here.client(tls=tls) as client:
            sizes = [256 * KIB] * 3 + [1, 512, 130_000, 300_000, 700_000, 1 << 20]
            rng.shuffle(sizes)
            cookies, at = [], 0
            for size in [256 * KIB, *sizes]:
                model[at : at + size] = data = rng.randbytes(size)
                cookies.append(client.send(WRITE, at, payload=data, flags=rng.choice([0, 0, 1])))
                at += size
            for cookie in cookies:
                assert not client.answer(cookie).error
            writes = the_secure(here)._writes
            assert writes is not None
            assert writes.wide
            assert budget.room == room - WIDE - HELD - MANY
            assert client.read(0, len(model)) == model
        while budget.room != room:
            assert other.read(0, 512) == model[:512]


def test_what_openssl_has_of_a_connection_counts(
    options: TlsOptions, tls: ssl.SSLContext, gate: Gate
) -> None:
    """From the beginning of its handshake, and to its end."""
    with serving(options) as here, here.client() as other:
        budget = here.server._clients.budget
        room = budget.room
        shaking = Shaking(half_way(here), tls)
        assert gate.reached.wait(60)
        assert room - budget.room == HELD
        gate.open.set()
        shaking.join(60)
        with here.client(tls=tls) as secure:
            secure.read(0, 512)
            while room - budget.room != HELD + MANY:
                other.read(0, 512)
        while budget.room != room:
            other.read(0, 512)


def test_whose_buffers_do_not_fit_is_served_without_them(
    options: TlsOptions, tls: ssl.SSLContext, rng: random.Random
) -> None:
    """And with them, as soon as they do."""
    data = rng.randbytes(300 * KIB)
    with serving(options) as here, here.client() as other:
        budget = here.server._clients.budget
        room, budget.room = budget.room, budget.room // 2 + MANY
        with here.client(tls=tls) as slow:
            slow.write(0, data)
            assert slow.read(0, len(data)) == data
            assert isinstance(the_secure(here)._socket._records, SingleRecords)
            _once_in_the_loop(here, lambda: budget.give_back(room // 2 - MANY))
            slow.write(512, data)
            assert slow.read(512, len(data)) == data
            assert isinstance(the_secure(here)._socket._records, ManyRecords)
        while budget.room != room:
            assert other.read(512, 512) == data[:512]


# ---- threads ---------------------------------------------------------------------------------


def test_a_handshake_does_not_hold_up_others(
    options: TlsOptions, tls: ssl.SSLContext, gate: Gate
) -> None:
    with serving(options) as here, here.client() as other:
        shaking = Shaking(half_way(here), tls)
        assert gate.reached.wait(60)
        assert other.read(0, 512) == bytes(512)
        gate.open.set()
        shaking.join(60)
    assert shaking.answered == ACK_OF_ABORT


def test_threads_give_way_to_the_loop(
    options: TlsOptions, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are theirs alone, of a lower priority, and end with the server."""
    lower = usual = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    if usual[0] == os.SCHED_OTHER:
        lower = os.SCHED_BATCH, min(usual[1] + 10, 19)
    found: list[tuple[str, int, int]] = []
    shake_hands, before = TlsSocket.shake_hands, set(threading.enumerate())

    def shaking(sock: TlsSocket) -> bool:
        name, nice = threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, 0)
        found.append((name, os.sched_getscheduler(0), nice))
        return shake_hands(sock)

    monkeypatch.setattr(TlsSocket, "shake_hands", shaking)
    with serving(options) as here, here.client() as other:
        with here.client(tls=tls) as secure:
            assert secure.read(0, 512) == other.read(0, 512)
        assert set(found) == {("tapcore-tls", *lower)}
        assert other.read(0, 512) == bytes(512)
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("kind", [1, 4])
def test_no_more_threads_than_are_wanted(
    kind: int, tls: ssl.SSLContext, options: TlsOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many handshakes there are at once; and one that cannot be started is not missed."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def starting(thread: threading.Thread) -> None:
        if thread.name == "tapcore-tls":
            if len(started) == 2:
                raise RuntimeError("no more threads")
            started.append(thread)
        start(thread)

    monkeypatch.setattr(tlssteps, "threads_for_steps", lambda: kind)
    monkeypatch.setattr(threading.Thread, "start", starting)
    with serving(options) as here, here.client():
        shaking = [Shaking(half_way(here), tls) for _ in range(12)]
        for each in shaking:
            each.join(60)
    assert [each.answered for each in shaking] == [ACK_OF_ABORT] * 12
    assert 1 <= len(started) <= min(kind, 2)


def test_without_a_thread_the_loop_does_it(
    options: TlsOptions, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(11, "no more threads")

    monkeypatch.setattr(Steps, "put", none)
    with serving(options) as here, here.client() as other, here.client(tls=tls) as secure:
        assert secure.read(0, 512) == other.read(0, 512)


def test_nobody_receives_from_a_client_whose_handshake_is_over_and_not_told_of(
    options: TlsOptions, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is quicker than the batch in which it was asked: that looks at the client, too."""
    computed, told = threading.Event(), threading.Event()
    shake_hands, put = TlsSocket.shake_hands, Steps.put

    def shaking(sock: TlsSocket) -> bool:
        over = shake_hands(sock)
        computed.set()
        assert not over or told.wait(60)
        return over

    def putting(steps: Steps, step: Step) -> None:
        computed.clear()
        put(steps, step)
        assert computed.wait(60)

    monkeypatch.setattr(TlsSocket, "shake_hands", shaking)
    monkeypatch.setattr(Steps, "put", putting)
    with serving(options) as here, here.client() as other:
        shaken = Shaking(half_way(here), tls)
        while not any(isinstance(each, TlsConnection) for each in here.server._clients.all):
            other.read(0, 512)
        while not the_secure(here)._socket.ready:
            other.read(0, 512)
        for _ in range(3):
            assert other.read(0, 512) == bytes(512)
        told.set()
        shaken.join(60)
    assert shaken.answered == ACK_OF_ABORT


@pytest.mark.parametrize("how", ["gone", "dropped", "stopped"])
def test_an_end_in_the_middle_of_a_step(
    how: str,
    options: TlsOptions,
    tls: ssl.SSLContext,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The descriptor stays until the thread is done with it, and no longer."""
    closed: list[int] = []
    close, wait = TlsSocket.close, Steps.close

    def closing(sock: TlsSocket) -> None:
        close(sock)
        closed.append(sock.fileno())

    def waiting(steps: Steps) -> None:
        gate.open.set()
        wait(steps)

    monkeypatch.setattr(TlsSocket, "close", closing)
    monkeypatch.setattr(Steps, "close", waiting)
    with serving(options) as here, here.client() as other:
        sock = half_way(here)
        same = sock.dup()
        shaking = Shaking(sock, tls)
        assert gate.reached.wait(60)
        if how == "gone":
            same.shutdown(socket.SHUT_RDWR)
        same.close()
        if how == "dropped":
            _once_in_the_loop(here, lambda: the_secure(here).drop())
        if how != "stopped":
            assert other.read(0, 512) == bytes(512)
            assert -1 not in closed
            gate.open.set()
            while -1 not in closed:
                assert other.read(0, 512) == bytes(512)
    shaking.join(60)
    assert (shaking.answered, closed[-1]) == (b"", -1)
    assert len(closed) == (1 if how == "gone" else 2)


def _once_in_the_loop(here: Here, call: Callable[[], object]) -> None:
    calls = here.server.loop.after_batch

    def once() -> None:
        here.server.loop.after_batch = [each for each in calls if each is not once]
        call()

    here.server.loop.after_batch = [*calls, once]
