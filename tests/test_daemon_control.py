"""The control socket: who may ask, how much at once, and how long others wait for him."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tapcore import TapError, TcpAddress, UnixAddress, UsageError
from tapcore.daemon import controlsocket, peers
from tapcore.daemon.client import DaemonClient
from tapcore.daemon.controlsocket import ControlClient, ControlSocket, WithDescriptors
from tapcore.daemon.facts import facts_of, has_open, listens_at, rows_of
from tapcore.daemon.jsonrpc import MAX_REQUEST, Call
from tapcore.daemon.remote import Remote
from tapcore.daemon.spec import DiskSpec
from tapcore.daemon.verbs import Later
from tapcore.engine.loop import Loop
from tapcore.nbd.listening import listen
from tapcore.process.timer import Timer


class Host:
    """A control socket in a loop in a thread, with a few things that can be asked for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop, self.timer = Loop(), Timer()
        self.loop.add(self.timer.fd, lambda _: self.timer.run_due())
        self.later: list[Later] = []
        self.got: list[bytes] = []
        self._calls: list[Callable[[], object]] = []
        self._wake = os.eventfd(0)
        self.loop.add(self._wake, self._woken)
        self.control = ControlSocket(
            self.loop, self.timer, listen(UnixAddress(path)), self.do, takes_descriptors=True
        )
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def do(self, call: Call, client: ControlClient) -> Any:
        if call.method == "echo":
            return call.params
        if call.method == "wait":
            self.later.append(Later())
            return self.later[-1]
        if call.method == "refuse":
            raise UsageError("is refused", image="d.img", errno=errno.EBUSY)
        if call.method == "break":
            raise RuntimeError("a bug")
        if call.method == "big":
            return "x" * (2 << 20)
        if call.method == "take":
            descriptor = client.descriptors.popleft()
            self.got.append(os.read(descriptor, 100))
            os.close(descriptor)
            return None
        return WithDescriptors("here", (self._wake,))

    def _woken(self, _: int) -> None:
        os.eventfd_read(self._wake)
        while self._calls:
            self._calls.pop(0)()

    def run(self, call: Callable[[], object]) -> None:
        """In its loop."""
        self._calls.append(call)
        os.eventfd_write(self._wake, 1)

    def end(self) -> None:
        self.run(self.loop.stop)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.control.close()
        self.timer.abandon()
        self.loop.close()
        os.close(self._wake)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(60)
        sock.connect(self.path)
        return sock


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(str(tmp_path / "s"))
    yield found
    found.end()


def lines(sock: socket.socket, count: int) -> list[dict[str, Any]]:
    """So many answers."""
    parts: list[bytes] = []
    while sum(part.count(b"\n") for part in parts) < count:
        parts.append(sock.recv(1 << 20))
        assert parts[-1], parts
    return [json.loads(line) for line in b"".join(parts).splitlines()]


def call(method: str, known: int, **params: Any) -> bytes:
    found = {"jsonrpc": "2.0", "method": method, "params": params, "id": known}
    return json.dumps(found).encode() + b"\n"


def test_calls_are_answered_with_results_and_errors(host: Host) -> None:
    with DaemonClient(path=host.path, timeout=60) as client:
        assert client.call("echo", x=[1, "ü"]) == {"x": [1, "ü"]}
        with pytest.raises(UsageError) as refused:
            client.call("refuse")
        assert (str(refused.value), refused.value.errno) == ("d.img: is refused", errno.EBUSY)
        with pytest.raises(TapError, match="RuntimeError: a bug"):
            client.call("break")
        assert client.call("echo") == {}


def test_answers_come_as_they_are_ready_and_belong_to_their_calls(host: Host) -> None:
    with host.connect() as sock:
        sock.sendall(call("wait", 1) + call("echo", 2) + b'{"jsonrpc":"2.0","method":"echo"}\n')
        assert lines(sock, 1)[0]["id"] == 2
        host.run(lambda: host.later[0].answer("now"))
        assert lines(sock, 1) == [{"jsonrpc": "2.0", "id": 1, "result": "now"}]


def test_what_is_no_call_is_answered_and_the_next_one_works(host: Host) -> None:
    with host.connect() as sock:
        sock.sendall(b"nonsense\n[]\n" + call("echo", 3))
        found = lines(sock, 3)
        assert [each.get("error", {}).get("code") for each in found] == [-32700, -32600, None]


def test_a_line_that_does_not_end_costs_its_sender_the_connection(host: Host) -> None:
    with host.connect() as sock:
        sock.sendall(b"x" * (MAX_REQUEST + 1))
        assert lines(sock, 1)[0]["error"]["code"] == -32600
        assert sock.recv(1) == b""


def test_many_calls_of_one_client_are_all_answered_in_turns(host: Host) -> None:
    count = 10 * controlsocket.CALLS_AT_ONCE
    with host.connect() as sock:
        sock.sendall(b"".join(call("echo", n) for n in range(count)))
        assert [each["id"] for each in lines(sock, count)] == list(range(count))


def test_no_more_calls_of_a_client_are_begun_than_may_be_in_flight(host: Host) -> None:
    most = controlsocket.MAX_IN_FLIGHT
    with host.connect() as sock, DaemonClient(path=host.path, timeout=60) as other:
        sock.sendall(b"".join(call("wait", n) for n in range(most + 3)))
        assert other.call("echo") == {}
        assert len(host.later) == most
        host.run(lambda: _answer(host.later[:most]))
        assert len(lines(sock, most)) == most
        _until(lambda: len(host.later) == most + 3)
        host.run(lambda: _answer(host.later))
        found = lines(sock, 3)
        assert sorted(each["id"] for each in found) == [most, most + 1, most + 2]


def test_who_takes_no_answers_holds_nobody_else(host: Host) -> None:
    with host.connect() as sock, DaemonClient(path=host.path, timeout=60) as other:
        sock.sendall(b"".join(call("big", n) for n in range(4)))
        assert other.call("echo", x=1) == {"x": 1}
        found = lines(sock, 4)
        assert [each["id"] for each in found] == [0, 1, 2, 3]


def test_half_a_line_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlsocket, "PATIENCE_SECONDS", 0.05)
    host = Host(str(tmp_path / "s"))
    with host.connect() as sock, host.connect() as silent:
        sock.sendall(b"{")
        assert sock.recv(1) == b""
        silent.sendall(call("echo", 1))  # who waits between calls may
        assert len(lines(silent, 1)) == 1
    host.end()


def test_who_is_silent_longest_makes_room_for_one_more(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlsocket, "MAX_CLIENTS", 3)
    with host.connect() as first, host.connect() as second, host.connect() as third:
        for sock in (second, third, first):
            sock.sendall(call("echo", 1))
            assert len(lines(sock, 1)) == 1
        with host.connect() as fourth:
            fourth.sendall(call("echo", 1))
            assert len(lines(fourth, 1)) == 1
            assert second.recv(1) == b""
            busy = (first, third, fourth)
            for sock in busy:
                sock.sendall(call("wait", 2))
            _until(lambda: len(host.later) == 3)
            with host.connect() as fifth:
                assert "already" in lines(fifth, 1)[0]["error"]["message"]
                assert fifth.recv(1) == b""


def test_another_user_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = peers.Peer(os.getpid(), os.geteuid())
    assert mine.trusted
    assert peers.Peer(1, 0).trusted
    monkeypatch.setattr(controlsocket, "peer_of", lambda sock: peers.Peer(1, 65533))
    with host.connect() as sock:
        assert lines(sock, 1)[0]["error"]["message"] == "this user may not"
        assert sock.recv(1) == b""


def test_descriptors_go_both_ways_and_do_not_stay_open(host: Host) -> None:
    loop, timer = Loop(), Timer()
    loop.add(timer.fd, lambda _: timer.run_due())
    remote = Remote(loop, timer, host.path, takes_descriptors=True)
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    told: list[Any] = []
    remote.call("take", {}, descriptors=(reader,)).then(lambda *found: told.append(found))
    remote.call("give", {}).then(lambda *found: told.append(found))
    remote.call("echo", {"x": 1}).then(lambda *found: told.append(found))
    while len(told) < 3:
        loop.run_once(60)
    assert told == [(None, None), ("here", None), ({"x": 1}, None)]
    assert host.got == [b"hello"]
    assert len(remote.descriptors) == 1
    assert remote.sender == os.getpid()
    remote.close()
    for each in (reader, writer):
        os.close(each)
    timer.abandon()
    loop.close()


def test_a_call_that_is_not_answered_ends_and_so_does_one_whose_other_side_is_gone(
    host: Host, tmp_path: Path
) -> None:
    loop, timer = Loop(), Timer()
    loop.add(timer.fd, lambda _: timer.run_due())
    told: list[Any] = []
    remote, nobody = Remote(loop, timer, host.path), Remote(loop, timer, str(tmp_path / "none"))
    nobody.call("echo", {}).then(lambda result, error: told.append(type(error)))
    remote.call("wait", {}, seconds=0.01).then(lambda result, error: told.append(error))
    while len(told) < 2:
        loop.run_once(60)
    assert told[0] is FileNotFoundError
    assert told[1].errno == errno.ETIMEDOUT
    remote.call("wait", {}).then(lambda result, error: told.append(type(error)))
    remote.close()
    assert told[2:] == [ConnectionResetError]
    timer.abandon()
    loop.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"jsonrpc":"2.0","id":77,"result":1}\n',
        b'{"jsonrpc":"2.0","id":[],"result":1}\n',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":"x","message":7,"data":[]}}\n',
        b'{"jsonrpc":"2.0","id":1}\n',
        b"",
    ],
)
def test_a_process_that_answers_nonsense_harms_only_who_asked_it(
    answer: bytes, tmp_path: Path
) -> None:
    loop, timer = Loop(), Timer()
    loop.add(timer.fd, lambda _: timer.run_due())
    with listen(UnixAddress(str(tmp_path / "s"))) as listener:
        remote = Remote(loop, timer, str(tmp_path / "s"), takes_descriptors=True)
        told: list[BaseException | None] = []
        remote.call("list", {}).then(lambda result, error: told.append(error))
        with listener.accept()[0] as sock:
            junk = os.open("/dev/null", os.O_RDONLY)
            socket.send_fds(sock, [answer or b" "], [junk] * 9)
            os.close(junk)
            if not answer:
                sock.close()
            while not told:
                loop.run_once(60)
    assert isinstance(told[0], OSError)
    assert len(remote.descriptors) <= 8
    remote.close()
    timer.abandon()
    loop.close()


@pytest.mark.parametrize("told", [None, 7, [], {}, {"disks": 7}, {"disks": [7, {}, {"name": 7}]}])
def test_what_a_process_says_of_no_disk_is_not_heard(told: Any) -> None:
    assert rows_of(told) == {}
    assert facts_of(told) == {}


def test_what_a_process_says_of_its_disk_has_to_be_of_the_right_type() -> None:
    good = {"handle": "ram", "virtual_size": 1, "read_only": False, "clients": 0, "state": "paused"}
    assert facts_of({**good, "pid": 1, "uri": "x"}) == good
    assert facts_of(dict.fromkeys(good, ())) == {}
    assert facts_of({"clients": True, "virtual_size": 1.0}) == {}


def test_a_socket_is_taken_over_only_where_it_has_to_listen(tmp_path: Path) -> None:
    where, other = UnixAddress(str(tmp_path / "s")), UnixAddress(str(tmp_path / "t"))
    with listen(where) as sock, listen(TcpAddress("127.0.0.1", 0)) as tcp:
        port = tcp.getsockname()[1]
        assert listens_at(sock.fileno(), where)
        assert not listens_at(sock.fileno(), other)
        assert not listens_at(sock.fileno(), TcpAddress("127.0.0.1", port))
        assert listens_at(tcp.fileno(), TcpAddress("127.0.0.1", port))
        assert not listens_at(tcp.fileno(), where)
        with open("/dev/null") as file:
            assert not listens_at(file.fileno(), where)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(where.path)
            assert not listens_at(client.fileno(), where)


def test_a_file_is_believed_to_be_served_where_it_is_open(tmp_path: Path) -> None:
    (tmp_path / "d.img").touch()
    (tmp_path / "link").symlink_to("d.img")
    named = [DiskSpec("aio:d.img", "d", str(tmp_path)), DiskSpec("link", "d", str(tmp_path))]
    assert not any(has_open(os.getpid(), spec) for spec in named)
    with open(tmp_path / "d.img"):
        assert not any(has_open(os.getpid(), spec) for spec in named)
        read_only = [attrs.evolve(spec, read_only=True) for spec in named]
        assert all(has_open(os.getpid(), spec) for spec in read_only)
    with open(tmp_path / "d.img", "r+b"):
        assert all(has_open(os.getpid(), spec) for spec in named)
    assert not has_open(0, named[0])


def _answer(some: list[Later]) -> None:
    for later in some:
        later.answer(None)


def _until(wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.005)
