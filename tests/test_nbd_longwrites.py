"""Long writes over NBD: pieces go to their places as they come, or to the engine."""

import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
from nbd_client import EIO, FUA, READ, TRIM, WRITE, Client
from nbdwire import LateDisk, Wire, every_lease_comes_back, finish, opened
from servedhere import served_here

import tapcore
from tapcore.engine.lane import Lane
from tapcore.tools.check import check_image, check_status

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
FORMATS = ["aio", "sync", "qcow2", "qcow", "vmdk", "vdi", "vhd", "vhdx"]


class Lengths(Counter[int]):
    """Of what was written in place, and how often that did not go (0)."""

    @property
    def bytes(self) -> int:
        """Written in place."""
        return sum(length * count for length, count in self.items())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no write wait."""
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Lengths:
    found, write = Lengths(), Lane.write

    def writing(lane: Lane, offset: int, content: memoryview) -> int | None:
        res = write(lane, offset, content)
        found[0 if res is None else len(content)] += 1
        return res

    monkeypatch.setattr(Lane, "write", writing)
    return found


def image(folder: Path, handle: str, *, full: int = SIZE) -> tuple[str, bytes]:
    """One of which the beginning is full of random content."""
    name, content = f"{handle}:{folder / f'disk.{handle}'}", random.Random(9).randbytes(full)
    tapcore.create_image(name, SIZE)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, content)
    return name, content + bytes(SIZE - full)


def prepared(wire: Wire) -> Wire:
    """One by which was written before: a format prepares its first change."""
    wire.feed(wire.make(WRITE, 0, payload=wire.call(READ, 0, 4096).content(0, 4096)))
    finish(wire, LateDisk(wire))
    wire.content()
    return wire


def in_parts(wire: Wire, sent: bytes, rng: random.Random) -> None:
    """As it comes from a socket."""
    at, disk = 0, LateDisk(wire)
    while at < len(sent):
        while wire.side.stalled:
            disk.answer()
            wire.turn()
        size = rng.choice([1, 500, 4096, 70_000, 212_992, 212_992, 1 << 20])
        at += wire.feed_once(sent[at : at + size])
        wire.turn()
    finish(wire, disk)


@pytest.mark.parametrize("handle", FORMATS)
def test_they_go_to_their_places(handle: str, tmp_path: Path, placed: Lengths) -> None:
    name, content = image(tmp_path, handle)
    rng, model = random.Random(4), bytearray(content)
    with every_lease_comes_back(), opened(name) as disk:
        wire = prepared(Wire(disk))
        placed.clear()
        total = 0
        for number in range(8):
            length = rng.choice([128 * KIB, 300 * KIB, MIB, 2 * MIB])
            offset = rng.randrange(0, SIZE - length, rng.choice([512, 4096, 64 * KIB]))
            total += length
            model[offset : offset + length] = payload = rng.randbytes(length)
            flags = FUA if number % 3 == 0 else 0
            in_parts(wire, wire.make(WRITE, offset, flags=flags, payload=payload), rng)
            assert not wire.answer().error
        assert wire.side.engine.idle
        assert wire.content() == model
        wire.end()
    with tapcore.open(name) as plain:
        assert plain.pread(0, length=SIZE) == model
    assert placed.bytes > total // 3, placed


@pytest.mark.parametrize("handle", ["aio", "qcow2", "vmdk", "vhd"])
def test_what_has_no_place_yet_goes_to_the_engine(
    handle: str, tmp_path: Path, placed: Lengths
) -> None:
    """From one piece to the next."""
    name, content = image(tmp_path, handle, full=SIZE // 2)
    rng, model = random.Random(5), bytearray(content)
    with every_lease_comes_back(), opened(name) as disk:
        wire = prepared(Wire(disk))
        for offset, length in [(MIB, 2 * MIB), (MIB + 512, 5 * SIZE // 8), (0, SIZE)]:
            model[offset : offset + length] = payload = rng.randbytes(length)
            in_parts(wire, wire.make(WRITE, offset, payload=payload), rng)
            assert not wire.answer().error
        assert wire.content() == model
        wire.end()
    assert any(placed)
    if handle in ("qcow2", "vmdk"):
        assert placed[0]
        assert not check_status(check_image(name))


@pytest.mark.parametrize("seed", range(6))
def test_the_lane_may_end_anywhere(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = image(tmp_path, "qcow2", full=SIZE // 2)
    rng, model, write = random.Random(seed), bytearray(content), Lane.write

    def sometimes(lane: Lane, offset: int, content: memoryview) -> int | None:
        return None if rng.random() < 0.3 else write(lane, offset, content)

    monkeypatch.setattr(Lane, "write", sometimes)
    with every_lease_comes_back(), opened(name) as disk:
        wire = prepared(Wire(disk))
        for _ in range(6):
            length = rng.randrange(128 * KIB, MIB, 512)
            offset = rng.randrange(0, SIZE - length, 512)
            model[offset : offset + length] = payload = rng.randbytes(length)
            in_parts(wire, wire.make(WRITE, offset, payload=payload), rng)
            assert not wire.answer().error
        assert wire.content() == model
        wire.end()
    assert not check_status(check_image(name))


# ---- in the middle of a write ---------------------------------------------------------------


def begun(wire: Wire, offset: int, payload: bytes, sent: int) -> bytes:
    """Send a part of a write; returns the rest."""
    request = wire.make(WRITE, offset, payload=payload)
    head = len(request) - len(payload)
    wire.feed(request[: head + sent])
    assert wire.side.amid_a_write
    return request[head + sent :]


@pytest.mark.parametrize("handle", ["aio", "qcow2"])
def test_a_client_that_goes_away(handle: str, tmp_path: Path, placed: Lengths) -> None:
    """What had come may have been written, up to where that is; nothing else has changed."""
    name, content = image(tmp_path, handle)
    payload = random.Random(6).randbytes(2 * MIB)
    with every_lease_comes_back(), opened(name) as disk:
        other, wire = prepared(Wire(disk)), prepared(Wire(disk))
        placed.clear()
        begun(wire, MIB, payload, sent := MIB + 12_345)
        assert wire.side.engine.idle
        wire.end()
        assert wire.side.engine.in_flight == 0
        assert wire.side.engine.idle
        now, written = other.content(), placed.bytes
        assert sent - 64 * KIB <= written <= sent
        assert now == content[:MIB] + payload[:written] + content[MIB + written :]
        assert not other.call(WRITE, MIB, payload=payload).error
        other.end()


def test_a_file_that_becomes_shorter(tmp_path: Path, placed: Lengths) -> None:
    """One error, and the file is not made longer."""
    name, content = image(tmp_path, "aio")
    path = tmp_path / "disk.aio"
    with every_lease_comes_back(), opened(name) as disk:
        wire = prepared(Wire(disk))
        rest = begun(wire, MIB, bytes(2 * MIB), MIB // 2)
        assert any(placed)
        os.truncate(path, 2 * MIB)
        wire.feed(rest)
        finish(wire, LateDisk(wire))
        assert wire.answer().error == EIO
        assert os.path.getsize(path) == 2 * MIB
        assert wire.call(READ, 0, MIB).content(0, MIB) == content[:MIB]
        wire.end()


def test_a_range_that_somebody_holds_meanwhile(tmp_path: Path, placed: Lengths) -> None:
    """The rest waits for it."""
    name, content = image(tmp_path, "aio")
    payload = random.Random(7).randbytes(MIB)
    with every_lease_comes_back(), opened(name) as disk:
        wire = prepared(Wire(disk))
        rest = begun(wire, 0, payload, MIB // 2)
        placed.clear()
        order = wire.side.engine.order
        hold = order.hold(3 * MIB // 4 // 512, MIB // 512)
        wire.feed(rest)
        assert not any(placed)
        assert wire.side.in_flight == 1
        order.release(hold)
        wire.turn()
        finish(wire, LateDisk(wire))
        assert not wire.answer().error
        assert wire.content() == payload + content[MIB:]
        wire.end()


def test_places_that_are_given_up_meanwhile(tmp_path: Path, placed: Lengths) -> None:
    """Somebody trims the range, and writes elsewhere: the rest has other places."""
    name, content = image(tmp_path, "qcow2")
    model, rng = bytearray(content), random.Random(8)
    with every_lease_comes_back(), opened(name) as disk:
        other, wire = prepared(Wire(disk)), prepared(Wire(disk))
        rest = begun(wire, 0, payload := rng.randbytes(2 * MIB), MIB)
        assert any(placed)
        other.feed(other.make(TRIM, MIB // 2, MIB))
        finish(other, LateDisk(other))
        assert not other.answer().error
        wire.feed(rest)
        finish(wire, LateDisk(wire))
        assert not wire.answer().error
        model[: MIB // 2] = payload[: MIB // 2]
        model[MIB : 2 * MIB] = payload[MIB:]
        now = other.content()
        trimmed = slice(MIB // 2, MIB)
        model[trimmed] = now[trimmed]
        assert now == model
        wire.end()
        other.end()
    assert not check_status(check_image(name))


def test_nothing_goes_past_a_filter(tmp_path: Path, placed: Lengths) -> None:
    name, _ = image(tmp_path, "aio")
    payload = random.Random(1).randbytes(MIB)
    with every_lease_comes_back(), opened(name, filters=("stats",)) as disk:
        wire = Wire(disk)
        wire.feed(wire.make(WRITE, 0, payload=payload))
        finish(wire, LateDisk(wire))
        assert wire.call(READ, 0, MIB).content(0, MIB) == payload
        wire.end()
    assert not any(placed)


# ---- through sockets ------------------------------------------------------------------------


def _writes(client: Client, start: int, model: bytearray, rng: random.Random) -> None:
    for _ in range(6):
        cookies = []
        for at in range(0, len(model), MIB // 2):
            length = rng.choice([128 * KIB, 200 * KIB, MIB // 2])
            model[at : at + length] = payload = rng.randbytes(length)
            cookies.append(client.send(WRITE, start + at, payload=payload))
            cookies.append(client.send(READ, start, 4096))
        assert not any(client.answer(cookie).error for cookie in cookies)


@pytest.mark.parametrize("handle", ["aio", "qcow2", "vdi"])
def test_two_clients_that_write_much(handle: str, tmp_path: Path, placed: Lengths) -> None:
    name, content = image(tmp_path, handle)
    models = [bytearray(content[: SIZE // 2]), bytearray(content[SIZE // 2 :])]
    with served_here(name) as here:
        clients = [here.client(), here.client(structured=False)]
        threads = [
            threading.Thread(
                target=_writes,
                args=(client, number * SIZE // 2, models[number], random.Random(number)),
            )
            for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = b"".join(clients[0].read(at, MIB) for at in range(0, SIZE, MIB))
        assert found == b"".join(models)
        for client in clients:
            client.close()
    assert any(placed)
