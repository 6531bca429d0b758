"""What a server waits for can always still happen: no request waits for itself.

The disks here are as late as can be: they answer when the server takes nothing more from its
client, or the client has nothing more to send, and then one thing at a time.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers.late import LateImage
from nbd_client import DF, EINVAL, READ, WRITE, Client, request
from nbdwire import LateDisk, Wire, every_lease_comes_back, finish, late, opened, settle
from served import served

import tapcore
from tapcore.files.imagefile import ImageFile
from tapcore.interface.options import CacheMode
from tapcore.nbd import constants, streaming, transmission, writes
from tapcore.nbd.outstanding import MAX_HELD
from tapcore.nbd.streaming import PIECE
from tapcore.process.workers import Completions

KIB, MIB = 1 << 10, 1 << 20
STEP = 64 * KIB
LONGEST = 32 * MIB
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

KINDS: list[tuple[str, CacheMode, dict[str, str]]] = [
    ("aio", "writeback", {}),
    ("aio", "none", {}),
    ("sync", "writeback", {}),
    ("ram", "writeback", {}),
    ("qcow2", "writeback", {}),
    ("qcow2", "none", {"cluster_size": "4K"}),
    ("qcow", "writeback", {}),
    ("qcow", "none", {}),
    ("vmdk", "writeback", {}),
    ("vmdk", "none", {}),
    ("vmdk", "none", {"subformat": "twoGbMaxExtentFlat"}),
]


@pytest.fixture(autouse=True)
def _leases() -> Iterator[None]:
    with every_lease_comes_back():
        yield


@pytest.fixture
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever could be done at once has to be waited for; answers come one by one."""
    monkeypatch.setattr(ImageFile, "write_now", lambda *_: None)
    monkeypatch.setattr(ImageFile, "read_now", lambda *_: None)
    monkeypatch.setattr("tapcore.files.windows.maps_well", lambda fd: False)

    def take_one(self: Completions) -> list[tuple[int, Any]]:
        found = [self._done.popleft()] if self._done else []
        if self._done:
            os.eventfd_write(self.eventfd, 1)
        return found

    monkeypatch.setattr(Completions, "take", take_one)


def send_slowly(wire: Wire, disk: LateDisk, data: bytes, step: int) -> int:
    """In steps, as long as the server takes any; returns how often it had to be waited for."""
    waits = 0
    view = memoryview(data)
    while len(view):
        while wire.side.stalled:
            waits += 1
            disk.answer()
            wire.turn()
        view = view[wire.feed_once(view[:step]) :]
        wire.turn()
        assert wire.side.held <= MAX_HELD + max(LONGEST, PIECE)
    return waits


def _eighth(monkeypatch: pytest.MonkeyPatch) -> int:
    """Every limit of the server an eighth of what it is; returns the longest request then."""
    longest = LONGEST // 8
    monkeypatch.setattr(transmission, "MAX_HELD", longest)
    monkeypatch.setattr(constants, "DEFAULT_BLOCK_MAX", longest)
    monkeypatch.setattr(writes, "STREAM_MIN", writes.STREAM_MIN // 8)
    monkeypatch.setattr(streaming, "PIECE", streaming.PIECE // 8)
    monkeypatch.setattr(streaming, "_WORTH_WRITING", streaming._WORTH_WRITING // 8)
    return longest


@pytest.mark.usefixtures("_late")
@pytest.mark.parametrize(
    ("handle", "cache", "options"),
    KINDS,
    ids=["-".join([handle, cache, *options.values()]) for handle, cache, options in KINDS],
)
def test_the_longest_writes_of_a_slow_client_end(
    handle: str,
    cache: CacheMode,
    options: dict[str, str],
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of 32 MiB, and one that has to come as a whole; of most drivers with smaller limits."""
    whole = THOROUGH > 1 or (handle, cache) == ("qcow2", "none")
    longest = LONGEST if whole else _eighth(monkeypatch)
    size, step = longest * 3 // 2, STEP * longest // LONGEST
    name = f"{handle}:{tmp_path / 'disk'}"
    if handle == "ram":
        name = f"ram:{size}"
    else:
        tapcore.create_image(name, size, options=options)
    data = rng.randbytes(longest)
    at, cut = longest // 4, longest // 32 * 5
    with opened(name, cache=cache) as state:
        wire = Wire(state, spans=False)
        disk = LateDisk(wire)
        send_slowly(wire, disk, wire.make(WRITE, at, payload=data), step)
        send_slowly(wire, disk, wire.make(WRITE, 3, payload=data[:cut]), step)
        finish(wire, disk)
        assert wire.errors() == [0, 0]
        wire.feed(wire.make(READ, at, longest) + wire.make(READ, 3, cut))
        finish(wire, disk)
        assert wire.parser.answers[3].content(at, longest) == data
        assert wire.parser.answers[4].content(3, cut) == data[:cut]
        wire.end()


@pytest.mark.parametrize("length", [2 * MIB, 64 * MIB])
def test_a_write_is_taken_to_its_end_whatever_its_client_has_not_read(
    length: int, rng: random.Random
) -> None:
    """A client in the middle of a request may have to send it all before it reads anything.

    So may one whose write is too long, and passed over.
    """
    data = rng.randbytes(MIB) * (length // MIB)
    with late(LateImage(40 << 11, now=0.0, cluster=2048)) as (wire, disk):
        wire.reads = False
        wire.feed_once(b"".join(wire.make(READ, 0, MIB, DF) for _ in range(32)))
        sent = memoryview(wire.make(WRITE, MIB, payload=data))
        sent = sent[wire.feed_once(sent[:STEP]) :]
        disk.engine.turn()
        disk.wait_for(lambda: wire.side.replies.unsent > MAX_HELD)
        while len(sent):
            while wire.side.stalled and not wire.side.resume():
                disk.step()
            sent = sent[wire.feed_once(sent[:STEP]) :]
        wire.reads = True
        settle(wire, disk)
        assert wire.errors() == [*[0] * 32, 0 if length < LONGEST else EINVAL]
        if length < LONGEST:
            assert disk.content()[MIB : MIB + length] == data


def test_a_client_in_the_middle_of_a_write_is_read_from_again(tmp_path: Path) -> None:
    """Over a socket: that a piece is on disk wakes its connection, though nothing is answered."""
    with (
        served("slow:34M", "--socket", "s", cwd=tmp_path, slow=0.1) as server,
        server.client(timeout=60) as client,
    ):
        data = random.Random(1).randbytes(MIB) * 32
        assert client.answer(client.send(WRITE, 512, payload=data)).error == 0
        assert client.read(512 + 31 * MIB, MIB) == data[:MIB]


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_several_slow_clients_of_one_disk_all_end(cache: str, tmp_path: Path) -> None:
    """In turn, 64 KiB each, in the same place: nobody's write waits for another's next step."""
    tapcore.create_image(f"qcow2:{tmp_path}/d.qcow2", 64 * MIB)
    with served("d.qcow2", "--socket", "s", "--cache", cache, cwd=tmp_path) as server:
        clients = [Client(server.uri, timeout=60) for _ in range(4)]
        content = [bytes([65 + n]) * (2 * MIB) for n in range(4)]
        wires = [memoryview(request(WRITE, 7, 0, 2 * MIB, payload=each)) for each in content]
        for client in clients:
            client.parser.expect(WRITE, 7, 0, 2 * MIB)
        while any(wires):
            for number, client in enumerate(clients):
                client.sock.sendall(wires[number][:STEP])
                wires[number] = wires[number][STEP:]
        for client in clients:
            assert client.answer(7).error == 0
        got = clients[0].read(0, 2 * MIB)
        assert all(set(got[at : at + 512]) <= set(b"ABCD") for at in range(0, 2 * MIB, 512))
        for client in clients:
            client.close()
