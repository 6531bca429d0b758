"""NBD past the page cache: the answers are those of the engine, whenever the disk answers.

The asynchronous engine is one of this file. It moves bytes when a test says so, in any order, and
fails where it is told to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from nbd_client import EIO, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES
from nbdwire import LateDisk, Wire, every_lease_comes_back, finish, opened

import tapcore
from tapcore.buffers import BufferPool
from tapcore.engine import READ as READS
from tapcore.engine import WRITE as WRITES
from tapcore.engine.loop import Loop
from tapcore.files import direct, pooledops
from tapcore.interface import registry
from tapcore.nbd.alone import Alone
from tapcore.nbd.commands import Commands
from tapcore.nbd.outstanding import MAX_HELD
from tapcore.tools.check import check_image, check_status
from tapcore.tools.create import create_image

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
FORMATS: list[tuple[str, dict[str, str]]] = [
    ("aio", {}),
    ("qcow2", {}),
    ("qcow2", {"cluster_size": "4K"}),
    ("qcow2", {"data_file": "data"}),
    ("vmdk", {}),
    ("vmdk", {"subformat": "twoGbMaxExtentFlat"}),
    ("vhdx", {}),
    ("vdi", {}),
]


@attrs.define
class Asked:
    """An operation that the kernel has."""

    write: bool
    fd: int
    offset: int
    buf: memoryview
    token: Any
    past_driver: bool

    def carry_out(self) -> int:
        if self.write:
            return os.pwritev(self.fd, [self.buf], self.offset)
        return os.preadv(self.fd, [self.buf], self.offset)


class LateIo:
    """An `IoEngine` that does nothing by itself."""

    made: ClassVar[list[LateIo]] = []
    holding = False
    """What goes past the driver waits for `go_on`; what drivers queue never does."""
    fault: Callable[[Asked], int | None] = staticmethod(lambda asked: None)
    """What becomes of one, if that is not what should."""

    def __init__(self, depth: int, eventfd: int) -> None:
        self.free = depth
        self._eventfd = eventfd
        self._queued: list[Asked] = []
        self._done: list[tuple[int, Any]] = []
        self.under: list[Asked] = []
        self.seen = 0
        LateIo.made.append(self)

    def address(self, buf: memoryview) -> int | None:
        return None if buf.readonly else ctypes.addressof(ctypes.c_char.from_buffer(buf))

    def queue_read(self, fd: int, offset: int, buf: memoryview, token: Any) -> None:
        self._queue(Asked(False, fd, offset, buf, token, False))

    def queue_write(self, fd: int, offset: int, buf: memoryview, token: Any) -> None:
        self._queue(Asked(True, fd, offset, buf, token, False))

    def _queue(self, asked: Asked) -> None:
        self.free -= 1
        self._queued.append(asked)

    def queue_all(self, write: bool, fd: int, ops: list[Any]) -> None:
        for offset, _, length, token in ops:
            self.seen += 1
            self._queue(Asked(write, fd, offset, token[4][:length], token, True))

    def move(
        self, write: bool, fd: int, offset: int, address: int, length: int, token: Any, _: float
    ) -> int | None:
        self.queue_all(write, fd, [(offset, address, length, token)])
        self.submit()
        if LateIo.holding:
            return None
        return next(res for res, found in self.reap() if found is token)

    def under_way(self) -> list[Any]:
        return [each.token for each in (*self._queued, *self.under)]

    def submit(self) -> list[tuple[int, Any]]:
        queued, self._queued = self._queued, []
        self.under += queued
        self.go_on(lambda asked: not (asked.past_driver and LateIo.holding))
        return []

    def go_on(self, wanted: Callable[[Asked], bool] = lambda asked: True) -> None:
        """Let the kernel be done with some, in the order that they were asked for."""
        asked, self.under = [(each, wanted(each)) for each in self.under], []
        done = [each for each, now in asked if now]
        self.under = [each for each, now in asked if not now]
        for each in done:
            res = LateIo.fault(each)
            self._done.append((each.carry_out() if res is None else res, each.token))
        if done:
            os.eventfd_write(self._eventfd, 1)

    def reap(self) -> list[tuple[int, Any]]:
        done, self._done = self._done, []
        self.free += len(done)
        return done

    def close(self) -> None:
        assert not self.under
        assert not self._done


@pytest.fixture(autouse=True)
def _late_io(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "load_engine", LateIo)
    for name, value in (("made", []), ("holding", False), ("fault", staticmethod(_no_fault))):
        monkeypatch.setattr(LateIo, name, value)


def _no_fault(asked: Asked) -> int | None:
    return None


@attrs.define
class Tried:
    """A disk that is served."""

    path: Path
    wire: Wire
    disk: LateDisk

    def finish(self) -> None:
        LateIo.holding = False
        for each in LateIo.made:
            each.go_on()
        if not self.wire.ended:
            finish(self.wire, self.disk)

    def let(self, wanted: Callable[[Asked], bool]) -> None:
        """The kernel is done with some."""
        for each in LateIo.made:
            before = len(each.under)
            each.go_on(wanted)
            if len(each.under) < before:
                self.disk.answer()
                self.wire.turn()

    def send(self, *requests: bytes) -> None:
        self.wire.feed(b"".join(requests))

    def call(self, command: int, offset: int = 0, length: int = 0, **more: Any) -> Any:
        """A request, all of it, and its answer; what is held stays so."""
        before = self.wire.side.in_flight
        self.send(self.wire.make(command, offset, length, **more))
        while self.wire.side.in_flight > before:
            self.disk.answer()
            self.wire.turn()
        return self.wire.answer()

    @property
    def seen(self) -> int:
        """Operations that went past the driver."""
        return sum(each.seen for each in LateIo.made)


@contextmanager
def tried(
    folder: Path, handle: str = "aio", content: bytes = b"", **options: Any
) -> Iterator[Tried]:
    """A disk of SIZE bytes, with content from its start on."""
    path = folder / f"disk.{handle}"
    chosen = dict(options.pop("create", {}))
    if "data_file" in chosen:
        chosen["data_file"] = str(folder / chosen["data_file"])
    create_image(f"{handle}:{path}", SIZE, options=chosen)
    with every_lease_comes_back(), opened(f"{handle}:{path}", cache="none") as disk:
        wire = Wire(disk, **options)
        found = Tried(path, wire, LateDisk(wire))
        for at in range(0, len(content), MIB):
            found.call(WRITE, at, payload=content[at : at + MIB])
        found.call(FLUSH)
        if content:  # tables are in memory, and the first change is made
            found.call(READ, 0, 4 * KIB)
            found.call(WRITE, 0, payload=content[: 4 * KIB])
        yield found
        found.finish()
        wire.end()


@pytest.fixture
def content(rng: random.Random) -> bytes:
    return rng.randbytes(SIZE)


@pytest.fixture(params=FORMATS, ids=lambda found: "-".join([found[0], *found[1].values()]))
def served(request: pytest.FixtureRequest, tmp_path: Path, content: bytes) -> Iterator[Tried]:
    handle, options = request.param
    with tried(tmp_path, handle, content, create=options) as found:
        yield found


def test_what_clients_read_and_write_is_the_content(
    served: Tried, content: bytes, rng: random.Random
) -> None:
    model, wire = bytearray(content), served.wire
    for number in range(60):
        LateIo.holding = True
        places = rng.sample(range(0, SIZE, 32 * KIB), 24)
        requests, reads = [], {}
        for at in places:
            length = rng.choice((512, 4 * KIB, 8 * KIB, 32 * KIB))
            at += rng.randrange(0, 32 * KIB - length + 1, 512)
            kind = rng.random()
            if kind < 0.5:
                requests.append(wire.make(READ, at, length))
                reads[wire._cookies] = at, length, bytes(model[at : at + length])
            elif kind < 0.9 or number < 20:
                payload = rng.randbytes(length)
                requests.append(wire.make(WRITE, at, payload=payload))
                model[at : at + length] = payload
            else:
                command = rng.choice((WRITE_ZEROES, FLUSH))
                requests.append(wire.make(command, at, length if command != FLUSH else 0))
                if command == WRITE_ZEROES:
                    model[at : at + length] = bytes(length)
        served.send(*requests)
        while any(each.under for each in LateIo.made):
            served.let(lambda asked: rng.random() < 0.3)
        served.finish()
        for cookie, (at, length, expected) in reads.items():
            assert wire.parser.answers[cookie].content(at, length) == expected
    assert not any(wire.errors())
    assert served.seen > 100
    assert wire.side.outstanding.budget.room == wire.side.outstanding.budget.__class__().room
    for at in range(0, SIZE, MIB):
        assert served.call(READ, at, MIB).content(at, MIB) == model[at : at + MIB]


@pytest.mark.parametrize("fault", [-errno.EIO, 512, 0])
@pytest.mark.parametrize("command", [READ, WRITE])
def test_what_does_not_go_is_tried_by_the_engine(
    command: int, fault: int, tmp_path: Path, content: bytes
) -> None:
    with tried(tmp_path, content=content) as served:
        LateIo.fault = staticmethod(lambda asked: fault if asked.past_driver else None)
        payload = b"w" * 4 * KIB
        make = served.wire.make
        many = [
            make(READ, at, 4 * KIB) if command == READ else make(WRITE, at, payload=payload)
            for at in range(0, MIB, 64 * KIB)
        ]
        served.send(*many)
        served.finish()
        assert served.seen >= len(many)
        LateIo.fault = staticmethod(_no_fault)
        assert not any(served.wire.errors())
        for at in range(0, MIB, 64 * KIB):
            expected = content[at : at + 4 * KIB] if command == READ else payload
            assert served.call(READ, at, 4 * KIB).content(at, 4 * KIB) == expected


@pytest.mark.parametrize("command", [READ, WRITE])
def test_an_error_of_the_disk_is_told_of_that_request_alone(
    command: int, tmp_path: Path, content: bytes
) -> None:
    def fails(asked: Asked) -> int | None:
        return -errno.EIO if asked.offset == 64 * KIB else None

    with tried(tmp_path, content=content) as served:
        LateIo.fault = staticmethod(fails)
        wire = served.wire
        payload = b"w" * 4 * KIB if command == WRITE else b""
        length = 0 if payload else 4 * KIB
        places = (0, 64 * KIB, 128 * KIB)
        served.send(*[wire.make(command, at, length, payload=payload) for at in places])
        served.finish()
        assert wire.errors()[-3:] == [0, EIO, 0]
        LateIo.fault = staticmethod(_no_fault)


@pytest.mark.parametrize("handle", ["qcow2", "vhdx"])
@pytest.mark.parametrize("command", [READ, WRITE])
def test_a_place_that_is_given_up_is_used_by_nobody_else_meanwhile(
    command: int, handle: str, tmp_path: Path
) -> None:
    cluster = 64 * KIB if handle == "qcow2" else MIB
    old, new = b"o" * cluster, b"n" * cluster
    with tried(tmp_path, handle, old) as served:
        served.call(READ, 0, 4 * KIB)
        LateIo.holding = True
        before = served.seen
        payload = b"l" * 4 * KIB if command == WRITE else b""
        served.send(served.wire.make(command, 0, 0 if payload else 4 * KIB, payload=payload))
        late = served.wire._cookies
        assert served.seen == before + 1
        served.call(TRIM, 0, cluster)
        served.call(FLUSH)
        for at in range(cluster, SIZE, cluster):
            served.call(WRITE, at, payload=new)
            served.call(FLUSH)
        assert not served.wire.parser.answers[late].done
        served.finish()
        if command == READ:
            read = served.wire.parser.answers[late].content(0, 4 * KIB)
            assert read in (old[: 4 * KIB], bytes(4 * KIB))
        for at in range(cluster, SIZE, cluster):
            assert served.call(READ, at, cluster).content(at, cluster) == new
        served.call(FLUSH)
        path = served.path
    assert check_status(check_image(f"{handle}:{path}")) == 0


def test_who_wants_a_range_alone_waits_for_writes_that_are_on_their_way(
    tmp_path: Path, content: bytes
) -> None:
    with tried(tmp_path, content=content) as served:
        LateIo.holding = True
        wire = served.wire
        whole, part = b"w" * 4 * KIB, b"p" * 10
        served.send(wire.make(WRITE, 0, payload=whole), wire.make(WRITE, 100, payload=part))
        for _ in range(3):
            wire.turn()
        assert wire.side.in_flight == 2
        served.finish()
        expected = whole[:100] + part + whole[110:]
        assert served.call(READ, 0, 4 * KIB).content(0, 4 * KIB) == expected
        # and the other way round: while the range is held nobody goes past
        assert not any(wire.errors())


def test_the_engine_knows_what_is_on_its_way(tmp_path: Path, content: bytes) -> None:
    with tried(tmp_path, content=content) as served:
        LateIo.holding = True
        engine, wire = served.wire.side.engine, served.wire
        mark = engine.content_mark
        served.send(wire.make(READ, 0, 4 * KIB), wire.make(WRITE, 8 * KIB, payload=b"w" * 512))
        assert engine.in_flight == 2
        assert (engine.idle, engine.content_mark) == (False, None)
        parts = [group.segment() for group in engine._accounts.past_drivers]
        found = {(part.op, part.sector, part.nb_sectors) for part in parts if part}
        assert found == {(READS, 0, 8), (WRITES, 16, 1)}
        served.finish()
        assert engine.idle
        assert engine.content_mark != mark
        assert not engine._accounts.past_drivers
        assert not engine.order.groups


def test_a_client_that_goes_leaves_its_buffers_to_the_disk(tmp_path: Path, content: bytes) -> None:
    with tried(tmp_path, content=content) as served:
        LateIo.holding = True
        wire = served.wire
        owed = wire.side.outstanding
        served.send(*[wire.make(READ, at, 4 * KIB) for at in range(0, MIB, 64 * KIB)])
        served.send(wire.make(WRITE, 0, payload=b"w" * 4 * KIB))
        room = owed.budget.room
        wire.end()
        assert owed.held == 17 * 4 * KIB
        assert owed.budget.room == room
        LateIo.holding = False
        for each in LateIo.made:
            each.go_on()
        served.disk.answer()
        assert (owed.held, owed.in_flight) == (0, 0)
        assert owed.budget.room == owed.budget.__class__().room
        with open(served.path, "rb") as file:
            assert file.read(4 * KIB) == b"w" * 4 * KIB


def test_what_waits_for_a_slow_client_has_its_buffers(tmp_path: Path, content: bytes) -> None:
    with tried(tmp_path, content=content) as served:
        wire = served.wire
        wire.reads = False
        places = range(0, MIB, 64 * KIB)
        cookies = {}
        for at in places:
            served.send(wire.make(READ, at, 4 * KIB))
            cookies[wire._cookies] = at
        served.finish()
        assert wire.side.replies.leased >= 16 * 4 * KIB
        other = b"w" * 64 * KIB
        for at in places:
            served.send(wire.make(WRITE, at, payload=other))
        served.finish()
        wire.reads = True
        wire.turn()
        for cookie, at in cookies.items():
            assert wire.parser.answers[cookie].content(at, 4 * KIB) == content[at : at + 4 * KIB]
        assert not wire.side.replies.leased


def test_a_client_that_takes_nothing_is_soon_read_no_further(
    tmp_path: Path, content: bytes
) -> None:
    with tried(tmp_path, content=content) as served:
        wire = served.wire
        wire.reads = False
        while not wire.side.stalled:  # one at a time: none is left to others
            served.send(wire.make(READ, 0, 128 * KIB))
            while wire.side.in_flight:
                served.disk.answer()
        assert MAX_HELD < wire.side.replies.leased <= MAX_HELD + 256 * KIB
        wire.reads = True
        wire.turn()
        served.finish()
        assert not any(wire.errors())


def test_nobody_overtakes_what_found_no_room(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "QUEUE_DEPTH", 4)
    with tried(tmp_path, content=content) as served:
        LateIo.holding = True
        wire = served.wire
        places = iter(range(64 * KIB, SIZE, 64 * KIB))
        served.send(*[wire.make(READ, next(places), 4 * KIB) for _ in range(4)])
        served.send(wire.make(WRITE, 0, flags=FUA, payload=b"w" * 4 * KIB))
        waits = wire.parser.answers[wire._cookies]
        assert wire.side.engine.waiting == 1
        (engine,) = [each for each in LateIo.made if each.under]
        first = engine.under[0]
        engine.go_on(lambda asked: asked is first)
        served.disk.answer()
        for request in (wire.make(READ, next(places), 4 * KIB) for _ in range(2)):
            wire.feed_once(request)  # before the engine has its turn
        wire.turn()
        for _ in range(8):  # the write, and its flush
            if not waits.done:
                served.disk.answer()
                wire.turn()
        assert waits.done
        assert len(engine.under) >= 3
        served.finish()
        assert not any(wire.errors())


def test_what_was_taken_before_a_fault_goes_to_the_disk_all_the_same(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tried(tmp_path, content=content) as served:
        wire = served.wire

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(Commands, "take", broken)
        with pytest.raises(RuntimeError):
            served.send(wire.make(READ, 0, 4 * KIB), wire.make(TRIM, 0, 4 * KIB))
        wire.end()  # as who serves it does
        served.disk.answer()
        assert wire.side.engine.idle


def test_another_thread_may_take_the_last_buffer(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Emptied(list[memoryview]):
        """Another thread was quicker."""

        def __bool__(self) -> bool:
            return True

    with tried(tmp_path, content=content) as served:
        monkeypatch.setattr(BufferPool, "shelf", lambda pool, size: Emptied())
        assert served.call(READ, 0, 4 * KIB).content(0, 4 * KIB) == content[: 4 * KIB]


def test_an_address_is_known_only_of_a_buffer_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Addresses(dict[int, int]):
        """Another thread comes while all are forgotten."""

        def clear(self) -> None:
            super().clear()
            if thread.ident is None:
                thread.start()
                thread.join(0.1)  # it has to wait until that is over

    known, kept = Addresses(), dict[int, memoryview]()
    monkeypatch.setattr(pooledops, "ADDRESSES", known)
    monkeypatch.setattr(pooledops, "_KEPT", kept)
    monkeypatch.setattr(pooledops, "_MOST_ADDRESSES", 1)
    first, second, third = (memoryview(bytearray(4 * KIB)) for _ in range(3))
    thread = threading.Thread(target=pooledops.remember, args=(second, 2))
    pooledops.remember(first, 1)
    pooledops.remember(third, 3)
    thread.join()
    assert known.keys() == kept.keys()


def test_a_file_that_was_cut_is_neither_read_nor_made_longer(
    tmp_path: Path, content: bytes
) -> None:
    with tried(tmp_path, content=content) as served:
        os.truncate(served.path, MIB)
        assert served.call(READ, 2 * MIB, 4 * KIB).error == EIO
        assert served.call(WRITE, 2 * MIB, payload=b"w" * 4 * KIB).error == EIO
        assert served.call(READ, 0, 4 * KIB).content(0, 4 * KIB) == content[: 4 * KIB]
        assert served.path.stat().st_size == MIB


def test_a_resize_waits_for_nothing_and_cuts_what_is_read_next(
    tmp_path: Path, content: bytes
) -> None:
    with tried(tmp_path, content=content) as served:
        engine = served.wire.side.engine
        dd = engine.disk.disks
        served.call(READ, 3 * MIB, 4 * KIB)
        dd.drv.td_resize(dd, 2 * MIB)
        engine.refresh()
        seen = served.seen
        assert engine.direct_lane.place_to_read(3 * MIB, 4 * KIB) < 0
        assert served.call(READ, 3 * MIB, 4 * KIB).error
        assert served.seen == seen


@pytest.mark.parametrize("what", ["filter", "page cache", "salvage"])
def test_there_is_no_lane_where_something_is_in_the_way(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Around:
        """Sees everything, and changes nothing."""

    monkeypatch.setitem(registry.default_registry()._known_filters, "around", Around())
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    options: dict[str, Any] = {"cache": "writeback" if what == "page cache" else "none"}
    if what == "filter":
        options["filters"] = ["around"]
    if what == "salvage":
        options["salvage"] = True
    with tapcore.open(f"aio:{path}", readonly=True, **options) as disk:
        assert not disk._engine.direct_lane.on


def test_the_disk_has_a_moment_for_the_only_request_of_the_only_client(
    tmp_path: Path, content: bytes
) -> None:
    with tried(tmp_path, content=content) as served:
        client, server = socket.socketpair()
        server.setblocking(False)
        wire, loop = served.wire, Loop()
        loop.served = 1
        alone = Alone(server, wire.side, loop)

        def ask(*requests: bytes) -> bool | None:
            client.sendall(b"".join(requests))
            answered = alone.receive()
            if answered is False:
                wire.side.received(0)
            return answered

        with client, server:
            assert ask(wire.make(READ, 0, 4 * KIB)) is True
            assert ask(wire.make(WRITE, 0, payload=b"w" * 4 * KIB)) is True
            assert ask(wire.make(READ, 0, 4 * KIB)) is True
            wire.parser.feed(client.recv(MIB))
            assert wire.answer().content(0, 4 * KIB) == b"w" * 4 * KIB
            loop.served = 2  # somebody else would have to wait
            assert ask(wire.make(READ, 0, 4 * KIB)) is False
            served.finish()
            assert wire.answer().content(0, 4 * KIB) == b"w" * 4 * KIB
            loop.served = 1
            LateIo.fault = staticmethod(lambda asked: 512 if asked.past_driver else None)
            assert ask(wire.make(READ, 0, 4 * KIB)) is False
            LateIo.fault = staticmethod(_no_fault)
            served.finish()
            assert wire.answer().content(0, 4 * KIB) == b"w" * 4 * KIB
            alone = Alone(server, wire.side, loop)  # which has no bad news of the disk
            LateIo.holding = True  # it takes longer
            assert ask(wire.make(READ, 4 * KIB, 4 * KIB)) is False
            assert wire.side.in_flight == wire.side.engine.in_flight == 1
            served.finish()
            assert wire.answer().content(4 * KIB, 4 * KIB) == content[4 * KIB : 8 * KIB]
            LateIo.holding = False
            assert ask(wire.make(READ, 0, 4 * KIB)) is False  # nor does anybody wait next
            served.finish()
            assert wire.answer().content(0, 4 * KIB) == b"w" * 4 * KIB
        loop.close()
