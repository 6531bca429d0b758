"""A ring beside an NBD server, in `serve` and in the daemon's processes."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemons import daemon_in, until
from nbd_client import Client
from ringbench import content
from servedhere import running

import tapcore
from tapcore import TapError
from tapcore.cli.main import main
from tapcore.errors import IOFailedError, UsageError
from tapcore.live import Live, LiveCalls
from tapcore.nbd.listening import OpenSockets, TcpAddress, UnixAddress, listen
from tapcore.nbd.server import NbdServer
from tapcore.ring.client import RingClient
from tapcore.tools.ring import serve_ring
from tapcore.tools.serve import nbd_server

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "d.img"
    path.write_bytes(content(1, MIB))
    return path


@contextmanager
def both(image: Path, **options: object) -> Iterator[NbdServer]:
    """A server with an NBD socket "n", and a ring at "r"."""
    server = nbd_server([f"sync:{image}"], UnixAddress("n"), **options)  # type: ignore[arg-type]
    serve_ring(server, UnixAddress("r"))
    with running(server):
        yield server


def test_both_are_the_same_disk(image: Path) -> None:
    with both(image) as server, RingClient("r") as ring, Client(server.uris()[0]) as nbd:
        assert server.clients == 2
        assert server.socket_files == ("n", "r")
        ring.write(4096, b"a" * 4096)
        assert nbd.read(4096, 4096) == b"a" * 4096
        nbd.write(8192, b"b" * 100)
        assert ring.read(8192, 512) == b"b" * 100 + content(1, MIB)[8292:8704]
    assert not os.path.exists("n")
    assert not os.path.exists("r")


def test_the_ring_ends_with_the_server_and_what_it_had_taken_is_answered(image: Path) -> None:
    with both(image) as server:
        ring = RingClient("r")
        made = [ring.front.read(number * 65536, 65536) for number in range(10)]
        ring.front.flush()
        ring.kick()
    with pytest.raises(IOFailedError, match="has gone"):
        list(iter(ring.wait, None))
    assert {each.status for each in made} <= {None, 0}
    ring.close()
    assert server.clients == 0


def test_a_front_end_keeps_a_server_that_would_end_when_it_is_idle(image: Path) -> None:
    server = nbd_server([f"sync:{image}"], UnixAddress("n"), idle_seconds=0.05)
    serve_ring(server, UnixAddress("r"))
    ended = threading.Event()
    with running(server), RingClient("r") as ring:
        for _ in range(5):
            assert not ended.wait(0.03)
            assert ring.read(0, 512) == content(1, 512)


def test_what_cannot_be_a_ring(image: Path) -> None:
    server = nbd_server([f"sync:{image}"], UnixAddress("n"))
    with running(server):
        with pytest.raises(UsageError, match="Unix socket"):
            serve_ring(server, TcpAddress("127.0.0.1", 0))
        busy = listen(UnixAddress("r"))
        with pytest.raises(UsageError, match="already in use"):
            serve_ring(server, UnixAddress("r"))
        busy.close()
    two = nbd_server([f"sync:{image}", "ram:1M"], UnixAddress("n"))
    with running(two), pytest.raises(UsageError, match="one disk"):
        serve_ring(two, OpenSockets(()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--ring r a.img b.img", "single IMAGE"),
        ("--ring r --overlay name a.img", "without --overlay"),
    ],
)
def test_the_command_line_says_what_cannot_be(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_disk_of_the_daemon_has_a_ring_that_outlives_its_process(
    image: Path, tmp_path: Path
) -> None:
    with daemon_in(tmp_path) as daemon, daemon.start() as client:
        disk = client.attach(f"sync:{image}", name="vm1", ring="vm1.ring")
        assert disk["ring"] == str(tmp_path / "vm1.ring")
        assert client.dump_ring("vm1") == []
        with RingClient("vm1.ring") as ring:
            ring.write(0, b"x" * 4096)
            ring.flush()
            (state,) = client.dump_ring("vm1")
            assert (state["req_cons"], state["rsp_prod"], state["busy"]) == (2, 2, [])
            (row,) = client.disks()
            assert row["clients"] == 1
            with pytest.raises(TapError, match="a client is connected"):
                client.detach("vm1")
            os.kill(row["pid"], signal.SIGKILL)
            with pytest.raises(IOFailedError, match="has gone"):
                ring.read(0, 512)
        with RingClient("vm1.ring") as ring:  # it waits until somebody is there again
            assert ring.read(0, 4096) == b"x" * 4096
            until(lambda: client.disks()[0]["state"] == "serving")
            client.detach("vm1", force=True)
            with pytest.raises(IOFailedError, match="has gone"):
                ring.read(0, 512)
        assert not os.path.exists("vm1.ring")
        other = tapcore.create_image("qcow2:d.qcow2", MIB)
        with pytest.raises(TapError, match="cannot listen"):
            client.attach(f"qcow2:{other.name}", name="vm2", ring="no/such/folder/ring")
        assert client.disks() == []
        assert daemon.end() == 0


def test_a_front_end_is_told_of_another_size(tmp_path: Path, image: Path) -> None:
    tapcore.create_image("qcow2:a.qcow2", MIB)
    server = nbd_server(["qcow2:a.qcow2"], UnixAddress("n"), names=["d"])
    serve_ring(server, UnixAddress("r"))
    calls = LiveCalls(Live(server))
    with running(server), RingClient("r") as ring:
        assert ring.size == MIB
        for number in range(2, 20):  # more than one look takes
            calls.resize("d", f"{number}M")
        assert ring.size == 19 * MIB
        ring.write(18 * MIB, b"new!" * 128)
        assert ring.read(18 * MIB, 512) == b"new!" * 128
        calls.resize("d", "1M", shrink=True)
        with pytest.raises(IOFailedError, match="READ has failed"):
            ring.read(18 * MIB, 512)
        assert ring.size == MIB
        with RingClient("r") as other:
            assert other.size == MIB
