"""Front ends at a real socket: how they come, what they send, how they go, what they cannot do."""

import contextlib
import errno
import fcntl
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from enginebench import open_fds
from nbdwire import opened
from ringserved import (
    SEAL,
    Here,
    connected,
    events,
    line,
    memory,
    opened_null,
    pipe_end,
    raw_ring,
    read_only_memory,
    send,
    served,
    tmpfs_file,
)

from tapcore.engine import engine_of
from tapcore.engine.loop import Loop
from tapcore.errors import NotSupportedError
from tapcore.nbd.listening import UnixAddress, listen
from tapcore.ring import connection, notifying
from tapcore.ring.client import RingClient
from tapcore.ring.handshake import HandshakeError
from tapcore.ring.notifying import Notifier
from tapcore.ring.server import RingServer


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with served(tmp_path) as running:
        yield running


# ---- who comes, and goes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ([memory, events, events], "connected"),
        ([lambda: memory(seals=0), events, events], "F_SEAL_SHRINK"),
        ([lambda: memory(8 << 12), events, events], "bytes"),
        ([lambda: memory(10 << 12), events, events], "bytes"),
        ([lambda: memory(0), events, events], "bytes"),
        ([lambda: memory(seals=SEAL | fcntl.F_SEAL_WRITE), events, events], "cannot be mapped"),
        ([read_only_memory, events, events], "cannot be mapped"),
        ([tmpfs_file, events, events], "F_SEAL_SHRINK"),
        ([opened_null, events, events], "not a memfd"),
        ([pipe_end, events, events], "not a memfd"),
        ([events, events, events], "not a memfd"),
        ([memory, memory, events], "eventfds"),
        ([memory, events, opened_null], "eventfds"),
        ([memory, pipe_end, pipe_end], "eventfds"),
        ([memory, events], "3 descriptors, not 2"),
        ([], "3 descriptors, not 0"),
        ([memory, events, events, events], "not more"),
        ([memory, *[events] * 100], "not more"),
    ],
)
def test_descriptors_are_looked_at(
    here: Here, make: list[Callable[[], int]], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with RingClient(here.path) as other:
        sock = connected(here.path)
        with sock:
            state = send(sock, line(), [each() for each in make])["state"]
            assert said in state
            if said != "connected":
                assert sock.recv(1) == b""  # dropped
        assert other.read(0, 512) == here.content[:512]
    if said != "connected":
        assert said in caplog.text


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"nonsense\n", "not JSON"),
        (b"[" * 4000 + b"\n", "not JSON"),
        (b"[1]\n", "version 1"),
        (b"\xff\xfe\n", "not JSON"),
        (line(**{"tapcore-ring": 2}), "version 1"),
        (line(protocol="sparc"), "'sparc' is not known"),
        (line(protocol=["x86_64-abi"]), "protocol"),
        (line(**{"ring-page-order": 5}), "pages at most"),
        (line(**{"ring-page-order": -1}), "pages at most"),
        (line(**{"ring-page-order": True}), "ring-page-order"),
        (line(**{"ring-page-order": 1e300}), "ring-page-order"),
        (line(**{"data-pages": 0}), "data pages"),
        (line(**{"data-pages": 16385}), "data pages"),
        (line(**{"data-pages": 1 << 80}), "data pages"),
        (line(**{"data-pages": None}), "data-pages"),
        (b"x" * 5000, "4096 bytes"),
        (line() + line(), "not JSON"),
        (line() + b"x", "one line"),
    ],
)
def test_lines_are_looked_at(here: Here, sent: bytes, said: str) -> None:
    with connected(here.path) as sock:
        assert said in send(sock, sent, [memory(), events(), events()])["state"]
    with RingClient(here.path) as other:
        assert other.read(0, 512) == here.content[:512]


def test_a_line_may_come_in_pieces_and_so_may_the_descriptors(here: Here) -> None:
    with connected(here.path) as sock:
        fds = [memory(), events(), events()]
        whole = line()
        for number, fd in enumerate(fds):
            socket.send_fds(sock, [whole[number : number + 1]], [fd])
            os.close(fd)
        assert send(sock, whole[3:], [])["state"] == "connected"


def test_descriptors_that_come_later_are_not_kept(here: Here) -> None:
    before = open_fds()
    with connected(here.path) as sock:
        assert send(sock, line(), [memory(), events(), events()])["state"] == "connected"
        fd = opened_null()
        with contextlib.suppress(OSError):
            socket.send_fds(sock, [b"x"], [fd])
        os.close(fd)
        assert sock.recv(1) == b""  # it has nothing to say there
    here.call(bool)
    assert open_fds() == before


def test_who_sends_nothing_is_dropped_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 0.05)
    with served(tmp_path) as here, connected(here.path) as sock:
        assert sock.recv(1) == b""


def test_who_goes_at_once_leaves_nothing(here: Here) -> None:
    for _ in range(30):
        connected(here.path).close()
    with connected(here.path) as sock:
        sock.sendall(line()[:10])
    with RingClient(here.path) as client:
        assert client.read(0, 512) == here.content[:512]
    for _ in range(1000):
        if not here.call(lambda: len(here.server.connections)):
            return
    raise AssertionError("connections were left")


def test_who_goes_with_requests_under_way_harms_nobody(tmp_path: Path) -> None:
    with served(tmp_path) as here, RingClient(here.path) as other:
        for number in range(10):
            client = RingClient(here.path)
            for _ in range(8):
                client.front.read(0, 65536)
            client.front.write(number * 4096, b"z" * 4096)
            client.kick()
            client.close()
            assert other.read(1 << 19, 4096) == here.content[1 << 19 : (1 << 19) + 4096]


def test_there_are_so_many_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with served(tmp_path, max_rings=2) as here:
        with RingClient(here.path), RingClient(here.path), pytest.raises(HandshakeError):
            RingClient(here.path)
        assert "there are 2 already" in caplog.text


# ---- what they cannot do -----------------------------------------------------------------------


def test_an_index_that_jumps_costs_one_line_of_log_and_one_front_end(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    with RingClient(here.path) as other:
        sock, view, kick, call = raw_ring(here)
        with sock:
            view[:4] = (33).to_bytes(4, "little")
            os.eventfd_write(kick, 1)
            assert sock.recv(1) == b""
        os.close(kick)
        os.close(call)
        errors = [each.message for each in caplog.records if each.levelname == "ERROR"]
        assert errors == [
            "front end dropped: the index of its requests says 33 of them, in a ring of 32"
        ]
        assert other.read(0, 512) == here.content[:512]


def test_an_eventfd_that_is_full_and_blocks_keeps_nobody_waiting(here: Here) -> None:
    """A write to it would wait until its owner reads it: all disks of the process with it."""
    with RingClient(here.path) as other:
        sock, view, kick, call = raw_ring(here)
        with sock:
            os.eventfd_read(call)  # it was tried
            os.set_blocking(call, True)
            os.set_blocking(kick, True)
            os.eventfd_write(call, (1 << 64) - 2)
            read = bytes([0, 1, *[0] * 22, *[0] * 4, 0, 7]).ljust(112, b"\0")
            view[64:176] = read
            view[:4] = (1).to_bytes(4, "little")
            os.eventfd_write(kick, 1)
            assert other.read(0, 512) == here.content[:512]
            for _ in range(1000):
                if bytes(view[8:12]) == b"\1\0\0\0":
                    break
                here.call(bool)
            assert bytes(view[8:12]) == b"\1\0\0\0"
            assert view[4096:8192] == here.content[:4096]
        os.close(kick)
        os.close(call)


def test_without_asynchronous_input_and_output_there_is_no_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(depth: int) -> None:
        raise OSError(errno.EAGAIN, "none left")

    monkeypatch.setattr(notifying._calls(), "setup", none_left)
    image = tmp_path / "a.img"
    image.write_bytes(bytes(4096))
    with opened(f"sync:{image}") as state:
        loop, listener = Loop(), listen(UnixAddress(str(tmp_path / "s")))
        with pytest.raises(NotSupportedError, match="asynchronous I/O: none left"):
            RingServer(engine_of(state), loop, listener)
        listener.close()
        loop.close()


def test_a_bell_rings_each_time_and_wakes_who_sleeps() -> None:
    notifier, fd = Notifier(), events()
    try:
        bell = notifier.bell(fd)
        poll = select.epoll()
        poll.register(fd, select.EPOLLIN | select.EPOLLET)
        for _ in range(300):
            bell()
            assert poll.poll(0)
        assert os.eventfd_read(fd) == 300
        poll.close()
        with pytest.raises(OSError, match="Invalid argument"):
            notifier.bell(opened := opened_null())()
        os.close(opened)
    finally:
        notifier.close()
        os.close(fd)
