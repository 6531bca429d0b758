"""Front ends at a real socket: how they come, what they send, how they go, what they cannot do."""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from enginebench import open_fds
from nbdwire import opened
from ringbench import content

from tapcore.engine import Engine, engine_of
from tapcore.engine.loop import NOTHING_TO_DO, Loop
from tapcore.errors import IOFailedError, NotSupportedError
from tapcore.nbd.listening import UnixAddress, listen
from tapcore.nbd.polled import PolledDisk
from tapcore.ring import connection, notifying
from tapcore.ring.client import RingClient
from tapcore.ring.dump import debug_fe_ring
from tapcore.ring.handshake import HandshakeError
from tapcore.ring.notifying import Notifier
from tapcore.ring.server import RingServer
from tapcore.ring.wire import X86_32, Op, Status

SIZE = 1 << 20
SEAL = fcntl.F_SEAL_SHRINK


@attrs.define(eq=False)
class Here:
    """A ring server in a thread.

    Attributes:
        path: of its socket.
        content: of the disk at the beginning.
    """

    path: str
    content: bytes
    engine: Engine
    server: RingServer
    loop: Loop
    _asked: int

    def call(self, work: Callable[[], Any]) -> Any:
        """Have something done in its thread, between two batches."""
        done = threading.Event()
        found: list[Any] = []

        def do() -> None:
            self.loop.after_batch.remove(do)
            found.append(work())
            done.set()

        self.loop.after_batch.append(do)
        os.eventfd_write(self._asked, 1)
        assert done.wait(30)
        return found[0]


@contextlib.contextmanager
def served(folder: Path, handle: str = "sync", **options: Any) -> Iterator[Here]:
    """Serve a raw disk of random content; everything is closed at the end, and looked at."""
    data = content(1, SIZE)
    image = folder / "disk.img"
    image.write_bytes(data)
    fds = descriptors()
    with opened(f"{handle}:{image}") as state:
        loop, engine = Loop(), engine_of(state)
        asked = os.eventfd(0, os.EFD_NONBLOCK)
        loop.add(asked, lambda _: os.eventfd_read(asked))
        disk = PolledDisk(loop, engine)
        path = str(folder / "ring")
        server = RingServer(engine, loop, listen(UnixAddress(path)), **options)
        loop.after_batch.insert(0, engine.turn)
        here = Here(path, data, engine, server, loop, asked)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield here
        finally:
            here.call(server.close)
            here.call(loop.stop)
            thread.join(30)
            disk.unpoll()
            loop.close()
            os.close(asked)
    # descriptors of strangers are closed elsewhere, perhaps a little later
    for other in threading.enumerate():
        if other.name == "close":
            other.join(30)
    assert descriptors() == fds


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with served(tmp_path) as running:
        yield running


# ---- what it is there for ----------------------------------------------------------------------


@pytest.mark.parametrize("handle", ["sync", "aio"])
@pytest.mark.parametrize("order", [0, 2])
def test_a_client_reads_writes_flushes_and_discards(
    tmp_path: Path, handle: str, order: int
) -> None:
    with served(tmp_path, handle) as here, RingClient(here.path, order=order) as client:
        assert client.size == SIZE
        assert client.read(0, SIZE) == here.content
        assert client.read(1536, 100 * 512) == here.content[1536 : 1536 + 51200]
        new = content(7, 300 * 512)
        client.write(2560, new)
        client.flush()
        client.barrier()
        assert client.read(2560, len(new)) == new
        client.discard(0, 65536)
        assert client.read(0, 65536) == bytes(65536)
        assert (
            client.read(65536, SIZE - 65536)
            == (here.content[:2560] + new + here.content[2560 + len(new) :])[65536:]
        )


@pytest.mark.parametrize("options", [{"protocol": X86_32}, {"data_pages": 12}, {"data_pages": 1}])
def test_clients_with_rings_of_other_kinds(here: Here, options: dict[str, Any]) -> None:
    with RingClient(here.path, **options) as client:
        length = 4096 if options.get("data_pages") == 1 else 65536
        if "data_pages" not in options:
            assert client.read(512, length) == here.content[512 : 512 + length]
        for number in range(20):
            at = number * 1024
            assert client.read(at, 4096) == here.content[at : at + 4096]


def test_many_at_a_time_in_any_order(here: Here) -> None:
    rng = random.Random(3)
    with RingClient(here.path) as client:
        wanted: dict[int, int] = {}
        answered = 0
        while answered < 500:
            while client.front.room_for(8192) and len(wanted) < 30:
                at = rng.randrange(SIZE // 512 - 16) * 512
                made = client.front.read(at, 8192)
                wanted[made.id] = at
            for made in client.wait(rng.randint(1, len(wanted))):
                at = wanted.pop(made.id)
                assert client.front.content(made) == here.content[at : at + 8192]
                client.front.done(made)
                answered += 1


def test_two_front_ends_at_a_time_see_each_other_s_writes(here: Here) -> None:
    with RingClient(here.path) as one, RingClient(here.path) as two:
        one.write(4096, b"a" * 4096)
        assert two.read(4096, 4096) == b"a" * 4096
        two.write(4096, b"b" * 512)
        assert one.read(4096, 1024) == b"b" * 512 + b"a" * 512


def test_an_error_is_told_and_the_next_request_is_served(here: Here) -> None:
    with RingClient(here.path) as client:
        with pytest.raises(IOFailedError, match="READ has failed"):
            client.read(SIZE - 512, 1024)
        with pytest.raises(IOFailedError, match="DISCARD has failed") as caught:
            client.finish(client.front.discard(0, 512, flag=1))
        assert caught.value.errno == errno.EOPNOTSUPP
        assert client.read(0, 512) == here.content[:512]
        assert not client.front.pending


def test_a_read_only_ring_on_a_disk_that_can_be_written(tmp_path: Path) -> None:
    with served(tmp_path, read_only=True) as here, RingClient(here.path) as client:
        assert client.offer.read_only
        assert client.offer.info & 4
        with pytest.raises(IOFailedError):
            client.write(0, bytes(512))
        assert client.read(0, 512) == here.content[:512]


def test_a_disk_of_large_sectors_is_counted_in_small_ones(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    dd = here.engine.disk.disks
    monkeypatch.setattr(dd, "sector_size", 4096)
    here.call(here.engine.refresh)
    with RingClient(here.path) as client:
        assert client.offer.sector_size == 4096
        assert client.size == SIZE
        assert client.read(512, 1024) == here.content[512:1536]
        client.write(1024, b"x" * 512)
        assert client.read(0, 4096) == here.content[:1024] + b"x" * 512 + here.content[1536:4096]


# ---- who comes, and goes -----------------------------------------------------------------------


def connected(path: str) -> socket.socket:
    """A socket to the server, past the server's first line."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(path)
    assert json.loads(sock.recv(4096))["tapcore-ring"] == 1
    return sock


CHOICE = {
    "tapcore-ring": 1,
    "protocol": "x86_64-abi",
    "ring-page-order": 0,
    "data-pages": 8,
}


def memory(length: int = 9 << 12, seals: int = SEAL, flags: int = 0) -> int:
    fd = os.memfd_create("front", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, length)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def events() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK)


def opened_null() -> int:
    return os.open("/dev/null", os.O_RDWR)


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def read_only_memory() -> int:
    fd = memory()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def tmpfs_file() -> int:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, 9 << 12)
    return fd


def send(sock: socket.socket, line: bytes, fds: list[int]) -> dict[str, Any]:
    """Send a line with descriptors, which are closed here; what is said of it ({}: nothing)."""
    if fds:
        socket.send_fds(sock, [line], fds)
    else:
        sock.sendall(line)
    for fd in fds:
        os.close(fd)
    try:
        said = sock.recv(4096)
    except ConnectionResetError:
        return {}
    found: dict[str, Any] = json.loads(said) if said else {}
    return found


def line(**changes: Any) -> bytes:
    return json.dumps(CHOICE | changes).encode() + b"\n"


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


def raw_ring(here: Here) -> tuple[socket.socket, memoryview, int, int]:
    """Connected by hand: the socket, the memory, and the two eventfds."""
    sock = connected(here.path)
    fd, kick, call = memory(), events(), events()
    view = memoryview(mmap.mmap(fd, 9 << 12))
    view[:16] = (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(4) + b"\1\0\0\0"
    assert send(sock, line(), [fd, os.dup(kick), os.dup(call)])["state"] == "connected"
    return sock, view, kick, call


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


# ---- pause, end, dump --------------------------------------------------------------------------


def test_a_pause_is_a_time_without_answers(here: Here) -> None:
    with RingClient(here.path, timeout=0.1) as client:
        assert client.read(0, 512) == here.content[:512]
        here.call(here.engine.hold)
        made = client.front.read(0, 512)
        with pytest.raises(IOFailedError, match="does not answer"):
            client.finish(made)
        assert not here.call(lambda: here.server.busy)
        client._timeout = 30
        here.call(here.engine.release)
        assert client.finish(made) == here.content[:512]


def test_who_connects_in_a_pause_is_answered_after_it(here: Here) -> None:
    here.call(here.engine.hold)
    with RingClient(here.path) as client:
        made = client.front.read(0, 512)
        client.kick()
        here.call(bool)
        assert not client.front.answered()
        here.call(here.engine.release)
        assert client.finish(made) == here.content[:512]


def test_a_server_that_stops_answers_what_it_has_taken(tmp_path: Path) -> None:
    with served(tmp_path, "aio") as here:
        client = RingClient(here.path)
        made = [client.front.read(number * 65536, 65536) for number in range(5)]
        client.kick()
        here.call(here.server.stop)
        with pytest.raises(IOFailedError, match="has gone"):
            list(iter(client.wait, None))
        statuses = [each.status for each in made]
        assert set(statuses) <= {None, Status.OKAY}  # not taken, or answered
        client.close()
        assert here.call(lambda: here.server.connections) == []


def test_debug_fe_ring_prints_what_its_name_promises(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    here.call(lambda: debug_fe_ring(here.engine.disk))
    assert capsys.readouterr().err.endswith("disk.img: 0 rings\n")
    with RingClient(here.path) as client:
        client.read(0, 4096)
        client.front.write(0, bytes(512), Op.WRITE)
        here.call(here.engine.hold)
        client.kick()
        here.call(lambda: debug_fe_ring(here.engine.disk))
        event = client.ring.shared.indices[3]  # 2 where it had to sleep
        assert capsys.readouterr().err.splitlines()[1:] == [
            "ring 0: x86_64-abi, 32 slots, 352 data pages, held",
            f"  shared:  req_prod 2, req_event 2, rsp_prod 1, rsp_event {event}",
            "  private: req_cons 1, rsp_prod_pvt 1",
            "  0 busy, 0 bytes of private buffers",
        ]


# ---- what a batch is spared --------------------------------------------------------------------


def test_what_the_lane_did_alone_needs_no_end_of_the_batch(here: Here) -> None:
    with RingClient(here.path) as client:
        client.read(0, 512)

        def kicked() -> object:
            client.ring.push()  # nobody is told but here
            (connection,) = here.server.connections
            return connection._kicked(0)

        made = client.front.read(4096, 4096)
        assert here.call(kicked) is NOTHING_TO_DO
        assert client.finish(made) == here.content[4096:8192]
        made = client.front.write(4096, b"a" * 4096)
        assert here.call(kicked) is NOTHING_TO_DO
        client.finish(made)
        made = client.front.flush()  # the engine's
        assert here.call(kicked) is None
        client.finish(made)
        here.call(here.engine.hold)
        made = client.front.read(4096, 4096)
        assert here.call(kicked) is None
        assert made.status is None
        here.call(here.engine.release)
        assert client.finish(made) == b"a" * 4096
