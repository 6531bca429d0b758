"""Memory of all clients together: there is so much, and nobody is shut out by who has it."""

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_client import BLOCK_STATUS, CACHE, DF, READ, WRITE, Client, request
from nbdwire import Wire, every_lease_comes_back, opened, ram
from servedhere import running

from tapcore import NbdServer, UnixAddress, nbd_server
from tapcore.engine.loop import Deadline
from tapcore.nbd import budget as module
from tapcore.nbd import commands, transmission
from tapcore.nbd.budget import SMALL, Budget
from tapcore.nbd.clients import Clients
from tapcore.nbd.replies import SMALL_REPLY

KIB, MIB = 1 << 10, 1 << 20
LIMIT = 64 * MIB


def test_who_waits_is_told_in_order_as_far_as_the_room_goes() -> None:
    told: list[str] = []
    tells = {name: (lambda name=name: told.append(name)) for name in "abc"}
    budget = Budget(10)
    budget.room -= 10
    for name, wanted in [("a", 6), ("b", 8), ("c", 1)]:
        budget.wait(wanted, tells[name])
    budget.give_back(5)
    assert told == []
    budget.give_back(2)
    assert told == ["a"]  # b is next, and has no room; c does not overtake
    budget.forget(tells["b"])
    assert told == ["a", "c"]
    assert budget.patience is None


def test_what_is_kept_leaves_half_for_requests() -> None:
    """Nobody gives back what he keeps, however long others wait."""
    budget = Budget(100)
    assert [budget.take_to_keep(20) for _ in range(4)] == [True, True, False, False]
    assert budget.take_to_keep(10)
    budget.give_back(50)
    budget.wait(200, print)
    assert not budget.take_to_keep(1)
    assert budget.room == 100


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdServer]:
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(1).randbytes(MIB) * 64)
    served = nbd_server([f"sync:{image}"], UnixAddress(str(tmp_path / "s")), max_memory=LIMIT)
    served._exports.all[0].file_spans = False  # all of it passes through memory
    lane = served._exports.all[0].engine.lane
    lane._chain, lane._whole, lane._whole_file = [], False, None
    with running(served):
        yield served


def _slow(server: NbdServer, count: int, length: int = 16 * MIB) -> list[socket.socket]:
    """Clients that ask for 128 MiB each, and take nothing."""
    found = []
    for _ in range(count):
        client = Client(server.uris()[0])
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"".join(request(READ, n, 0, length, flags=DF) for n in range(128 * MIB // length))
        client.sock.sendall(asked)
        found.append(client.sock)
    return found


def test_slow_readers_have_their_share_and_honest_clients_go_on(
    server: NbdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten clients ask for 1280 MiB together, and take nothing."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 1000.0)
    budget = server._clients.budget
    slow = _slow(server, 10)
    with Client(server.uris()[0]) as honest:
        while not budget.waiting:
            honest.read(0, 512)
        for _ in range(50):
            assert len(honest.read(MIB - 100, 64 * KIB)) == 64 * KIB
            honest.write(0, b"w" * 4096)
            assert budget.room >= -len(slow) * 2 * SMALL
    for sock in slow:
        sock.close()


def test_who_takes_nothing_goes_when_others_wait_for_memory(
    server: NbdServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 1000.0)
    budget = server._clients.budget
    slow = _slow(server, 3, SMALL)  # so that hardly anything is left
    with Client(server.uris()[0]) as honest, Client(server.uris()[0]) as other:
        first = other.read(0, 4096)
        while budget.room > SMALL:
            other.read(0, 512)
        length = 2 * SMALL  # which the socket takes at once, so that it cannot be called slow
        cookie = honest.send(READ, 0, length)
        while len(budget.waiting) < 2:
            other.read(0, 512)
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
        budget.patience = Deadline(0.0)
        other.read(0, 512)
        assert honest.answer(cookie).content(0, length)[:4096] == first
    assert "it took no replies while memory was short" in caplog.text
    for sock in slow:
        sock.close()


def test_all_is_given_back(server: NbdServer) -> None:
    budget = server._clients.budget
    with Client(server.uris()[0]) as client, Client(server.uris()[0]) as gone:
        for length in (512, 100 * KIB, MIB, 8 * MIB):
            client.write(3 * 512, b"x" * length)
            client.write(7, b"y" * length)
            client.read(5, length)
        gone.send(READ, 0, 32 * MIB)
        gone.sock.sendall(request(WRITE, 99, 0, 8 * MIB) + bytes(MIB))
        gone.sock.close()
        while len(server._clients.all) > 1 or budget.room != LIMIT:
            client.read(0, 1)
    assert not budget.waiting


def test_a_write_that_comes_whole_waits_for_its_memory(tmp_path: Path) -> None:
    """An unaligned one; an aligned one needs a piece at a time."""
    (tmp_path / "d").write_bytes(bytes(64 * MIB))
    with every_lease_comes_back(), opened(f"sync:{tmp_path / 'd'}") as disk:
        wire = Wire(disk)
        budget = wire.side.outstanding.budget
        budget.room = 4 * MIB
        wire.feed(wire.make(WRITE, 0, payload=b"a" * 16 * MIB))
        assert wire.answer().error == 0
        head = wire.make(WRITE, 1, payload=b"b" * 16 * MIB)
        wire.feed_once(head[: 64 * KIB])
        assert wire.side.stalled
        assert list(budget.waiting.values()) == [16 * MIB]
        budget.give_back(60 * MIB)
        wire.turn()
        assert [wire.side.stalled] == [False]
        wire.feed(head[64 * KIB :])
        assert wire.answer().error == 0
        assert budget.room == 64 * MIB
        wire.end()


def test_replies_without_a_buffer_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block status of many runs; who has little may ask all the same, and the others wait."""
    runs = [(512, n % 2) for n in range(2048)]
    monkeypatch.setattr(commands, "block_status", lambda *_, **__: runs)
    with ram(reads=False) as wire:
        budget = wire.side.outstanding.budget
        room = budget.room
        for _ in range(30):
            wire.feed(wire.make(BLOCK_STATUS, 0, MIB))
        taken = room - budget.room
        assert taken == wire.side.replies.leased >= 30 * 2048 * 8
        budget.room = 0
        wire.feed_once(wire.make(BLOCK_STATUS, 0, MIB))
        assert wire.side.stalled
        assert len(budget.waiting) == 1
        wire.reads = True
        wire.turn()
        assert wire.answer().runs == runs
        assert (wire.side.stalled, budget.room, budget.waiting) == (False, taken, {})


def test_many_short_replies_are_bounded_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes more memory than it has bytes."""
    monkeypatch.setattr(transmission, "MAX_WAITING", 100)
    with ram(reads=False) as wire:
        budget = wire.side.outstanding.budget
        room = budget.room
        for _ in range(100):
            wire.feed(wire.make(CACHE, 0, 512))
        wire.feed_once(wire.make(CACHE, 0, 512) + wire.make(CACHE, 0, 512))
        wire.turn()
        assert wire.side.stalled
        assert room - budget.room == wire.side.replies.leased == 102 * SMALL_REPLY
        wire.reads = True
        wire.turn()
        assert (wire.errors(), budget.room, wire.side.stalled) == ([0] * 102, room, False)


def test_what_is_read_out_of_files_for_a_slow_client_counts(tmp_path: Path) -> None:
    """It was to be sent from the file itself; somebody else is about to change it there."""
    (tmp_path / "d").write_bytes(b"d" * 2 * MIB)
    with opened(f"sync:{tmp_path / 'd'}") as disk:
        wire = Wire(disk, reads=False)
        budget = wire.side.outstanding.budget
        room = budget.room
        for at in (0, MIB):
            wire.feed(wire.make(READ, at, MIB))
        assert room - budget.room < 64 * KIB
        wire.export.before_giving_up()
        assert room - budget.room >= 2 * MIB
        wire.reads = True
        wire.turn()
        assert wire.answer().content(MIB, MIB) == b"d" * MIB
        assert budget.room == room
        wire.end()


def test_only_who_has_taken_nothing_for_a_whole_round_goes() -> None:
    class One:
        def __init__(self, answers: list[bool]) -> None:
            self.answers, self.dropped = answers, False

        def took_nothing(self, rounds: int) -> bool:
            return self.answers.pop(0)

        def drop(self) -> None:
            self.dropped = True

    clients = Clients(Budget(0))
    slow, quick = One([False, True]), One([False, False])
    clients.all |= {slow, quick}  # type: ignore[arg-type]
    clients.check_memory()
    clients.budget.wait(1, print)
    for _ in range(2):
        clients.budget.patience = Deadline(0.0)
        clients.check_memory()
    assert (slow.dropped, quick.dropped) == (True, False)
