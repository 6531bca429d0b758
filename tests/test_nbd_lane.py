"""NBD by way of the lane: the answers are those of the engine, whatever happens to the files."""

import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_client import EIO, READ, TRIM, WRITE, WRITE_ZEROES, Client
from nbdwire import LateDisk, Wire, finish, opened
from served import served
from servedhere import served_here

import tapcore
from peers import missing
from tapcore.engine.lane import Lane
from tapcore.files.windows import Windows

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
FORMATS: list[tuple[str, dict[str, str]]] = [
    ("aio", {}),
    ("qcow", {}),
    ("qcow2", {}),
    ("vmdk", {}),
    ("vmdk", {"subformat": "twoGbMaxExtentFlat"}),
    ("vhd", {}),
]


class Taken(Counter[str]):
    """How many requests were in the lane, and how many were not."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    found = Taken()
    to_read, to_write = Lane.to_read, Lane.to_write

    def reading(lane: Lane, offset: int, length: int) -> memoryview | None:
        view = to_read(lane, offset, length)
        found["no read" if view is None else "read"] += 1
        return view

    def writing(lane: Lane, offset: int, length: int) -> memoryview | None:
        view = to_write(lane, offset, length)
        found["no write" if view is None else "write"] += 1
        return view

    monkeypatch.setattr(Lane, "to_read", reading)
    monkeypatch.setattr(Lane, "to_write", writing)
    yield found
    if not found["read"] and not found["write"]:
        missing("the scratch directory's file system is not mapped")


def full(folder: Path, handle: str, options: dict[str, str] | None = None) -> tuple[str, bytes]:
    """An image full of random content."""
    name, content = f"{handle}:{folder / f'disk.{handle}'}", random.Random(9).randbytes(SIZE)
    tapcore.create_image(name, SIZE, options=options or {})
    with tapcore.open(name) as disk:
        disk.pwrite(0, content)
    return name, content


def warm(client: Client) -> None:
    """Let tables and content lie in memory."""
    for at in range(0, SIZE, MIB):
        client.read(at, MIB)
    for at in range(0, SIZE, 16 * KIB):
        client.read(at, 4 * KIB)


# ---- reads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(("handle", "options"), FORMATS, ids=str)
def test_reads(
    handle: str, options: dict[str, str], structured: bool, tmp_path: Path, taken: Taken
) -> None:
    name, content = full(tmp_path, handle, options)
    rng = random.Random(3)
    with served_here(name) as here, here.client(structured=structured) as client:
        warm(client)
        taken.clear()
        for _ in range(40):
            asked = []
            for _ in range(32):
                length = rng.choice([512, 4 * KIB, 4 * KIB, 64 * KIB, 300 * KIB, 1000])
                offset = rng.randrange(SIZE - length)
                if rng.random() < 0.8:
                    offset -= offset % 512
                asked.append((client.send(READ, offset, length), offset, length))
            for cookie, offset, length in asked:
                answer = client.answer(cookie)
                assert answer.content(offset, length) == content[offset : offset + length]
        assert taken["read"] > 300


@pytest.mark.parametrize("structured", [True, False])
def test_a_file_that_becomes_shorter_is_one_error_for_each_read(
    structured: bool, tmp_path: Path
) -> None:
    """Others are served meanwhile, and afterwards."""
    name, content = full(tmp_path, "aio")
    other, _ = full(tmp_path, "qcow2")
    cut = 2 * MIB + 100
    with served(name, other, "--socket", "s", uris=2, quiet=False, cwd=tmp_path) as server:
        clients = [Client(server.uris[0], structured=structured) for _ in range(3)]
        neighbour = Client(server.uris[1], structured=structured)
        for client in clients:
            warm(client)
        asked: list[tuple[Client, int, int]] = []
        rng = random.Random(5)
        for number in range(60):
            if number == 30:
                os.truncate(name.partition(":")[2], cut)
            for client in clients:
                for _ in range(16):
                    offset = rng.randrange(0, SIZE, 4096)
                    asked.append((client, client.send(READ, offset, 4096), offset))
            cookie = neighbour.send(READ, offset, 4096)
            assert neighbour.answer(cookie).content(offset, 4096) == content[offset:][:4096]
        for number, (client, cookie, offset) in enumerate(asked):
            answer = client.answer(cookie)
            if answer.error:
                assert answer.error == EIO
                assert offset + 4096 > cut
                assert not answer.pieces
            else:
                assert answer.content(offset, 4096) == content[offset : offset + 4096]
                assert offset + 4096 <= cut or number < 60 * 48
        for client in (*clients, neighbour):
            assert client.read(0, 4096) == content[:4096]
            assert client.parser.idle
            client.close()


def test_the_kernel_s_own_refusal_leads_to_the_ordinary_way(
    tmp_path: Path, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody has looked whether the file is still as long: EFAULT, and no signal."""
    name, content = full(tmp_path, "aio")
    again: list[int] = []
    failed = Lane.failed

    def told(lane: Lane) -> None:
        again.append(1)
        failed(lane)

    with served_here(name) as here, here.client() as client:
        warm(client)
        monkeypatch.setattr(Lane, "holds", lambda *_, **__: True)
        monkeypatch.setattr(Windows, "shrunk", lambda self: False)
        monkeypatch.setattr(Lane, "failed", told)
        os.truncate(name.partition(":")[2], 2 * MIB)
        cookies = [(client.send(READ, at, 4096), at) for at in range(0, SIZE, 64 * KIB)]
        for cookie, offset in cookies:
            answer = client.answer(cookie)
            if offset < 2 * MIB:
                assert answer.content(offset, 4096) == content[offset : offset + 4096]
            else:
                assert (answer.error, answer.pieces) == (EIO, [])
        assert client.parser.idle
    assert again


# ---- a client that is slow to take its replies ---------------------------------------------


def slow_reads(wire: Wire, offset: int, length: int, step: int = 64 * KIB) -> None:
    """Requests whose replies wait, in memory of the host file."""
    wire.reads = False
    for at in range(offset, offset + length, step):
        wire.feed(wire.make(READ, at, step))
    assert wire.side.replies.reads_file


def contents(wire: Wire) -> list[bytes]:
    """Of the reads that have waited, in order."""
    wire.reads = True
    wire.turn()
    return [
        b"".join(bytes(piece) for _, piece in answer.pieces)
        for _, answer in sorted(wire.parser.answers.items())
        if answer.pieces
    ]


def test_places_that_are_given_up_are_read_out_before(tmp_path: Path, taken: Taken) -> None:
    """They would show what comes there next: another part of the disk."""
    name, content = full(tmp_path, "qcow2")
    with opened(name) as state:
        reader, writer = Wire(state), Wire(state)
        disk = LateDisk(writer)
        reader.content()
        reader.parser.answers.clear()
        slow_reads(reader, 0, MIB)
        for _ in range(3):
            writer.feed(writer.make(TRIM, 0, MIB))
            finish(writer, disk)
            writer.feed(writer.make(3))  # a flush: what was given up can be given out
            finish(writer, disk)
            writer.feed(writer.make(WRITE, 0, payload=b"n" * MIB))
            finish(writer, disk)
        assert not reader.side.replies.reads_file
        assert b"".join(contents(reader)) == content[:MIB]
        reader.end()
        writer.end()


def test_places_that_are_copied_on_write_are_read_out_when_they_are_free(
    tmp_path: Path, taken: Taken
) -> None:
    """Nobody has trimmed anything: a write moved a cluster whose entry lacks its flag."""
    name, content = full(tmp_path, "qcow2")
    with opened(name) as state:
        drv, leaf = state.disks.drv, state.disks
        drv.td_snapshot_create(leaf, "s")
        reader, writer = Wire(state), Wire(state)
        disk = LateDisk(writer)
        reader.content()
        reader.parser.answers.clear()
        slow_reads(reader, 0, MIB)
        writer.feed(writer.make(WRITE, 0, payload=b"1" * MIB))  # copied, as the snapshot has it
        finish(writer, disk)
        drv.td_snapshot_delete(leaf, "s")  # now the old places are free
        assert not reader.side.replies.reads_file
        writer.feed(writer.make(WRITE_ZEROES, 2 * MIB, MIB))
        finish(writer, disk)
        writer.feed(writer.make(3))
        finish(writer, disk)
        writer.feed(writer.make(WRITE, 2 * MIB, payload=b"2" * MIB))
        finish(writer, disk)
        assert b"".join(contents(reader)) == content[:MIB]
        reader.end()
        writer.end()


def test_a_resize_while_replies_wait(tmp_path: Path, taken: Taken) -> None:
    name, content = full(tmp_path, "aio")
    with tapcore.open(name) as disk:
        wire = Wire(disk._state)
        wire.content()
        wire.parser.answers.clear()
        slow_reads(wire, 2 * MIB, MIB)
        disk.resize(2 * MIB)
        assert not wire.side.replies.reads_file
        assert b"".join(contents(wire)) == content[2 * MIB : 3 * MIB]
        wire.end()


@pytest.mark.parametrize("structured", [True, False])
def test_replies_that_wait_while_the_file_becomes_shorter(
    structured: bool, tmp_path: Path, taken: Taken
) -> None:
    """None of them has begun: each becomes an error, or what is there."""
    name, content = full(tmp_path, "aio")
    with opened(name) as state:
        wire = Wire(state, structured=structured)
        disk = LateDisk(wire)
        wire.content()
        wire.parser.answers.clear()
        slow_reads(wire, MIB, 2 * MIB)
        os.truncate(name.partition(":")[2], 2 * MIB + 100)
        wire.reads = True
        wire.turn()
        finish(wire, disk)
        for number, (_, answer) in enumerate(sorted(wire.parser.answers.items())):
            offset = MIB + number * 64 * KIB
            if offset < 2 * MIB:
                assert answer.content(offset, 64 * KIB) == content[offset : offset + 64 * KIB]
            else:
                assert (answer.error, answer.pieces) == (EIO, [])
        assert wire.side.held == wire.side.in_flight == 0
        assert wire.side.replies.queued == wire.side.replies.sent
        wire.end()


def test_a_client_that_takes_its_replies_late_gets_all_of_them(
    tmp_path: Path, taken: Taken
) -> None:
    """Beside others that write, trim and zero what it has asked for."""
    name, content = full(tmp_path, "qcow2")
    with served_here(name) as here, here.client() as slow, here.client() as other:
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        warm(other)
        cookies = [(slow.send(READ, at, 64 * KIB), at) for at in range(0, SIZE, 64 * KIB)]
        for number in range(12):
            other.call(TRIM, 0, SIZE // 2)
            other.flush()
            other.write(SIZE // 2, bytes([number + 1]) * MIB)
            other.write(0, bytes([number + 1]) * MIB)
            other.call(WRITE_ZEROES, 0, MIB)
            other.flush()
        for cookie, offset in cookies:
            found = slow.answer(cookie).content(offset, 64 * KIB)
            if offset >= 3 * MIB:  # nobody has written there
                assert found == content[offset : offset + 64 * KIB]
            elif offset >= MIB and offset < 2 * MIB:
                assert found in (content[offset : offset + 64 * KIB], bytes(64 * KIB))
        assert slow.parser.idle


def test_many_clients_at_once(tmp_path: Path, taken: Taken) -> None:
    name, content = full(tmp_path, "vmdk")
    wrong: list[object] = []

    def read(client: Client, seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(200):
                offsets = [rng.randrange(0, SIZE, 4096) for _ in range(8)]
                cookies = [client.send(READ, at, 4096) for at in offsets]
                for cookie, at in zip(cookies, offsets, strict=True):
                    assert client.answer(cookie).content(at, 4096) == content[at : at + 4096]
        except BaseException as exc:
            wrong.append(exc)

    with served_here(name) as here:
        clients = [here.client() for _ in range(4)]
        warm(clients[0])
        threads = [threading.Thread(target=read, args=(c, n)) for n, c in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    assert not wrong
    assert taken["read"] > 1000
