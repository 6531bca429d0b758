"""How a server ends: at the first signal cleanly, at the second at once, and never silently."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from drivers.faulty import Faulty, FaultyImage
from interrupts import planted
from nbd_client import READ, WRITE, Client, request
from served import Served, served

import tapcore
from tapcore import DiskId, IOFailedError, OpenOptions, Registry
from tapcore.nbd import listening
from tapcore.nbd.exports import Export, Exports
from tapcore.nbd.listening import UnixAddress
from tapcore.nbd.server import NbdServer
from tapcore.opening.chain import open_disk
from tapcore.tools.openimage import open_chain

MIB = 1 << 20


def asked(server: Served, socket: Path, signum: int) -> None:
    """A first signal, and the event that shows that it was heard: nobody new can come."""
    server.process.send_signal(signum)
    server.until(lambda: not socket.exists(), 30)


@pytest.mark.parametrize(
    ("disk", "signum"),
    [("slow", signal.SIGHUP), ("stuck", signal.SIGTERM), ("stuck", signal.SIGINT)],
)
def test_a_second_signal_ends_it_though_its_disk_never_answers(
    disk: str, signum: int, tmp_path: Path
) -> None:
    """Even where the main thread is inside of a system call that no signal ends."""
    where = tmp_path / "s"
    with (
        served(f"{disk}:1M", "--socket", where, slow=100_000) as server,
        server.client() as client,
    ):
        client.send(READ, 0, 4096)
        server.sees_an_end() if disk == "slow" else None
        asked(server, where, signum)
        assert server.process.poll() is None
        server.ends(signum)
    assert not where.exists()


def test_a_disk_that_does_not_answer_is_named_while_the_end_waits_for_it(tmp_path: Path) -> None:
    name = "tapcore.nbd.server.STOP_SECONDS"
    with (
        served(
            "slow:1M", "--socket", "s", slow=100_000, changes={name: 0.1}, cwd=tmp_path
        ) as server,
        server.client() as client,
    ):
        client.send(WRITE, 0, payload=bytes(4096))
        server.sees_an_end()
        server.process.terminate()
        assert server.process.stderr is not None
        line = server.process.stderr.readline()
        assert line.startswith("tapdisk: slow:1M: waiting for the disk; requests that it has not ")
        assert line.endswith("answered: 1 (a signal ends it at once)\n")
        server.ends(signal.SIGTERM)


def test_a_disk_that_never_answers_keeps_no_other_from_being_saved(tmp_path: Path) -> None:
    """What a qcow2's client was answered lies in memory until the last flush."""
    tapcore.create_image(f"qcow2:{tmp_path / 'd'}", MIB)
    with served(
        "slow:1M",
        "qcow2:d",
        "--socket",
        "s",
        uris=2,
        slow=100_000,
        changes={"tapcore.nbd.server.STOP_SECONDS": 0.1},
        quiet=False,
        cwd=tmp_path,
    ) as server:
        dead, good = (Client(uri) for uri in server.uris)
        with dead, good:
            dead.send(READ, 0, 4096)
            good.write(0, b"g" * MIB)
            server.sees_an_end()
            server.process.terminate()
            server.until(lambda: not any(each.endswith("/d") for each in server.open_files()))
        assert server.process.stderr is not None
        told = server.process.stderr.readline()  # it may come after the other disk was saved
        assert told.startswith("tapdisk: slow:1M: waiting for the disk")
        assert server.ends(signal.SIGTERM) == ""
    with tapcore.open(f"qcow2:{tmp_path / 'd'}", readonly=True) as disk:
        assert disk.pread(0, length=MIB) == b"g" * MIB


_EARLY = """
import os, signal, sys
from tapcore.cli.main import main
from tapcore.nbd import listening
real, signum = listening._listen_unix, int(sys.argv.pop())
def listen_and_be_stopped(path):
    found = real(path)
    os.kill(os.getpid(), signum)
    return found
listening._listen_unix = listen_and_be_stopped
sys.exit(main())
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_just_after_the_socket_was_made_leaves_nothing(
    signum: int, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", _EARLY, "serve", "ram:1M", "--socket", "s", str(int(signum))]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == []


def test_a_signal_ends_it_while_a_client_hangs_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """What had arrived of it may be there or not; its end is not waited for."""
    (tmp_path / "disk.img").write_bytes(bytes(4 * MIB))
    with (
        served("aio:disk.img", "--socket", "s", cwd=tmp_path) as server,
        server.client() as answered,
        server.client() as hanging,
    ):
        hanging.sock.sendall(request(WRITE, 1, 0, 2 * MIB) + bytes(MIB))
        answered.write(3 * MIB, b"a" * MIB)
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(40) == 0
        server.stopped = True
    assert (tmp_path / "disk.img").read_bytes()[3 * MIB :] == b"a" * MIB


def test_hanging_up_stops_nothing_where_that_is_ignored_from_the_start(tmp_path: Path) -> None:
    """As nohup(1) sets it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with served("ram:1M", "--socket", "s", cwd=tmp_path) as server:
            server.process.send_signal(signal.SIGHUP)
            with server.client() as client:
                client.write(0, b"w" * 512)
            ignored = server.signals("SigIgn")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ignored & 1 << (signal.SIGHUP - 1)


def test_a_socket_that_another_server_has_made_since_is_left_alone(tmp_path: Path) -> None:
    where = tmp_path / "s"
    with served("ram:1M", "--socket", where) as first:
        where.unlink()
        with served("ram:2M", "--socket", where) as second:
            first.stop()
            with second.client() as client:
                assert client.size == 2 * MIB


def test_a_last_flush_that_fails_is_the_error_of_run(tmp_path: Path) -> None:
    """Exit status 0 would say that what was answered is on disk."""
    registry = Registry(discover=False)
    registry.register(Faulty())
    (tmp_path / "image").touch()
    image = FaultyImage(64, flush_faults={0: -errno.ENOSPC})
    options = OpenOptions(private={"images": {"image": image}})
    disk = open_disk(DiskId(str(tmp_path / "image"), "faulty"), registry, options=options)
    server = NbdServer(Exports([Export.of(disk, "")]), UnixAddress(str(tmp_path / "s")))
    server.stop()
    with pytest.raises(IOFailedError, match="the last flush failed: No space left") as caught:
        server.run()
    assert caught.value.errno == errno.ENOSPC
    assert image.closes == 1
    assert os.listdir(tmp_path) == ["image"]


def test_an_exception_out_of_the_middle_of_its_work_ends_it_without_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no signal is asked to stop it, Ctrl-C comes anywhere; requests are then left over."""
    tapcore.create_image(f"qcow2:{tmp_path / 'disk'}", 1 << 20)
    disk = open_chain(f"qcow2:{tmp_path / 'disk'}", writing=True)
    where = UnixAddress(str(tmp_path / "s"))
    server = NbdServer(Exports([Export.of(disk, "")]), where)

    def write() -> None:
        with suppress(Exception), Client(where.uri("")) as client:
            client.write(0, b"x" * 4096)

    thread = threading.Thread(target=write)
    thread.start()
    with planted(disk, "td_queue_write", "after"), pytest.raises(KeyboardInterrupt):
        server.run()
    thread.join()
    assert "what was not flushed may be lost" in caplog.text
    with tapcore.open(f"qcow2:{tmp_path / 'disk'}", readonly=False) as again:
        again.pwrite(0, b"goes on")


_LIKE_BEFORE = """
import os, signal, threading
from tapcore.process.stopping import StopSignals
before = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, [])
for heard in (False, True, False):
    done = threading.Event()
    signals = StopSignals(done.set)
    if heard:
        os.kill(os.getpid(), signal.SIGINT)
        done.wait()
    signals.close()
    assert done.is_set() == heard
assert before == (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, []))
assert threading.active_count() == 1
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("as before")
"""


def test_signals_mean_what_they_meant_before_when_nobody_waits_any_more() -> None:
    words = [sys.executable, "-c", _LIKE_BEFORE]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "as before\n", "")


def test_a_driver_that_does_not_come_back_is_named_and_left_behind(tmp_path: Path) -> None:
    """The main thread is inside of it: nobody but another thread can end the process."""
    changes = {
        "tapcore.nbd.server.STOP_SECONDS": 0.1,
        "tapcore.nbd.server.GIVE_UP_SECONDS": 0.1,
    }
    with (
        served("stuck:1M", "--socket", "s", slow=1, changes=changes, cwd=tmp_path) as server,
        server.client() as client,
    ):
        client.send(READ, 0, 4096)
        client.send(READ, 0, 4096)
        server.until(lambda: server.signals("SigBlk") & 1 << signal.SIGUSR1 - 1)
        server.process.terminate()
        assert server.process.wait(60) == 1
        server.stopped = True
        assert server.process.stderr is not None
        assert server.process.stderr.read().splitlines() == [
            "tapdisk: stuck:1M: the driver does not come back (a signal ends it at once)",
            "tapdisk: stuck:1M: ended without it: what was not flushed may be lost",
        ]


def test_a_disk_that_never_answers_does_not_keep_the_server(tmp_path: Path) -> None:
    """It ends with what it could save, and says of the other that it could not."""
    changes = {
        "tapcore.nbd.server.STOP_SECONDS": 0.1,
        "tapcore.nbd.closing.GIVE_UP_SECONDS": 0.1,
    }
    tapcore.create_image(f"qcow2:{tmp_path / 'd'}", MIB)
    with served(
        *("slow:1M", "qcow2:d", "--socket", "s"),
        uris=2,
        slow=100_000,
        changes=changes,
        cwd=tmp_path,
    ) as server:
        dead, good = (Client(uri) for uri in server.uris)
        with dead, good:
            dead.send(READ, 0, 4096)
            good.write(0, b"g" * MIB)
            server.sees_an_end()
            server.process.terminate()
            assert server.process.wait(60) == 1
        server.stopped = True
        assert server.process.stderr is not None
        assert server.process.stderr.read().splitlines()[-1] == (
            "tapdisk: slow:1M: has not answered: what was not flushed may be lost"
        )
    with tapcore.open(f"qcow2:{tmp_path / 'd'}", readonly=True) as disk:
        assert disk.pread(0, length=MIB) == b"g" * MIB


def test_connections_of_tcp_end_when_their_other_end_is_dead(tmp_path: Path) -> None:
    """As the kernel sees each accepted socket."""
    for listener in (
        listening.listen(listening.TcpAddress("127.0.0.1", 0)),
        listening._adopt(socket.create_server(("127.0.0.1", 0)).detach()),
    ):
        with listener, socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
