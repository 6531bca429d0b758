"""NBD by way of the lane: the answers are those of the engine, whatever happens to the files."""

import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from nbd_client import EIO, ENOSPC, READ, TRIM, WRITE, WRITE_ZEROES, Client
from nbdwire import LateDisk, Wire, finish, opened
from served import served
from servedhere import served_here

import tapcore
from hostfs import small_ext4
from peers import missing
from tapcore.engine.lane import Lane
from tapcore.files.windows import Windows
from tapcore.tools.check import check_image, check_status

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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no write wait."""
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    found = Taken()
    to_read, write = Lane.to_read, Lane.write

    def reading(lane: Lane, offset: int, length: int) -> memoryview | None:
        view = to_read(lane, offset, length)
        found["no read" if view is None else "read"] += 1
        return view

    def writing(lane: Lane, offset: int, content: memoryview) -> int | None:
        res = write(lane, offset, content)
        found["no write" if res is None else "write"] += 1
        return res

    monkeypatch.setattr(Lane, "to_read", reading)
    monkeypatch.setattr(Lane, "write", writing)
    yield found
    if not found["read"] and not found["write"]:
        missing("the scratch directory's file system is not mapped")


def full(folder: Path, handle: str, options: dict[str, str] | None = None) -> tuple[str, bytes]:
    """An image full of random content."""
    name, content = f"{handle}:{folder / f'disk.{handle}'}", random.Random(9).randbytes(SIZE)
    tapcore.create_image(name, SIZE, options=options or {})
    with tapcore.open(name, readonly=False) as disk:
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


def sends_from_file(wire: Wire) -> bool:
    return wire.side.replies.reads_file


def test_who_touches_what_is_sent_gets_no_memory_of_the_file(tmp_path: Path, taken: Taken) -> None:
    """TLS encrypts it in this process: not even what came with the handshake may be left."""
    name, content = full(tmp_path, "aio")
    with opened(name) as state:
        warmed = Wire(state)
        warmed.content()
        wire = Wire(state)
        wire.reads = False
        wire.feed(wire.make(READ, 0, 4096) + wire.make(READ, MIB, 64 * KIB))
        assert sends_from_file(wire)
        wire.side.only_copies()
        assert not sends_from_file(wire)
        wire.feed(wire.make(READ, 8192, 4096))
        assert not sends_from_file(wire)
        disk = LateDisk(wire)
        wire.reads = True
        wire.turn()
        finish(wire, disk)
        answers = [answer for _, answer in sorted(wire.parser.answers.items())]
        for answer, (at, length) in zip(
            answers, [(0, 4096), (MIB, 64 * KIB), (8192, 4096)], strict=True
        ):
            assert answer.content(at, length) == content[at : at + length]
        wire.end()
        warmed.end()


# ---- writes --------------------------------------------------------------------------------


class Busy:
    """A client that changes its own part of the disk in all ways, and knows what it holds."""

    def __init__(self, client: Client, start: int, content: bytes, seed: int) -> None:
        self.client = client
        self.start = start
        self.model = bytearray(content)
        self.wrong: BaseException | None = None
        self.rng = random.Random(seed)

    def run(self) -> None:
        try:
            for _ in range(60):
                self._batch()
        except BaseException as exc:
            self.wrong = exc

    def _batch(self) -> None:
        """Requests of one batch do not overlap, as nothing says which of two comes first."""
        rng, size = self.rng, len(self.model)
        step = rng.choice([4 * KIB, 16 * KIB, 64 * KIB])
        slots = rng.sample(range(size // step), 8)
        pending: list[tuple[int, int, int, int]] = []
        for at in (slot * step for slot in slots):
            length = rng.choice([512, 4 * KIB, 4 * KIB, 4 * KIB, step, 777])
            command = rng.choice([READ, WRITE, WRITE, WRITE, WRITE, TRIM, WRITE_ZEROES])
            payload = rng.randbytes(length) if command == WRITE else b""
            flags = rng.choice([0, 0, 0, 1]) if command != READ else 0  # FUA
            cookie = self.client.send(
                command, self.start + at, length, flags=flags, payload=payload
            )
            if command == WRITE:
                self.model[at : at + length] = payload
            elif command == WRITE_ZEROES:
                self.model[at : at + length] = bytes(length)
            pending.append((cookie, command, at, length))
        if rng.random() < 0.2:
            self.client.flush()
        for cookie, command, at, length in pending:
            answer = self.client.answer(cookie)
            assert not answer.error
            if command == READ:
                found = answer.content(self.start + at, length)
                assert found == self.model[at : at + length]
            elif command == TRIM:  # as before, or zeroes
                found = self.client.read(self.start + at, length)
                self.model[at : at + length] = found


@pytest.mark.parametrize(("handle", "options"), FORMATS, ids=str)
def test_four_clients_that_write(
    handle: str, options: dict[str, str], tmp_path: Path, taken: Taken
) -> None:
    name, content = full(tmp_path, handle, options)
    part = SIZE // 4
    with served_here(name) as here:
        busy = []
        for number in range(4):
            client = here.client(structured=bool(number % 2))
            warm(client)
            start = number * part
            busy.append(Busy(client, start, content[start : start + part], number))
        threads = [threading.Thread(target=each.run) for each in busy]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong = [each.wrong for each in busy if each.wrong is not None]
        assert not wrong, wrong[0]
        model = b"".join(bytes(each.model) for each in busy)
        assert b"".join(busy[0].client.read(at, MIB) for at in range(0, SIZE, MIB)) == model
        for each in busy:
            each.client.close()
        assert taken["write"] > 30
    with tapcore.open(name, readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == model
    if handle in ("qcow2", "vmdk"):
        assert not check_status(check_image(name))


def test_a_full_disk_under_a_hole_is_one_error_for_each_write(tmp_path: Path) -> None:
    """And everything else goes on."""
    with small_ext4(tmp_path, 8 * MIB) as where:
        path = where / "disk"
        with open(path, "wb") as file:
            file.write(b"d" * MIB)
            file.truncate(4 * MIB)
            os.fsync(file.fileno())
        with open(where / "fill", "wb", buffering=0) as fill, suppress(OSError):
            while True:
                fill.write(bytes(4 * KIB))
        socket_path = tmp_path / "s"
        with (
            served(f"aio:{path}", "--socket", socket_path) as server,
            server.client() as client,
            server.client() as other,
        ):
            cookies = [
                (client.send(WRITE, at, payload=b"n" * 4096), at)
                for at in range(0, 4 * MIB, 64 * KIB)
            ]
            for cookie, offset in cookies:
                assert client.answer(cookie).error == (0 if offset < MIB else ENOSPC)
            assert client.parser.idle
            assert other.read(64 * KIB, 4096) == b"n" * 4096
            assert other.read(2 * MIB, 4096) == bytes(4096)
            other.write(4096, b"o" * 4096)
            assert client.read(0, 8192) == b"n" * 4096 + b"o" * 4096
            os.unlink(where / "fill")
            client.write(2 * MIB, b"p" * 4096)
            assert other.read(2 * MIB, 4096) == b"p" * 4096


def test_a_file_that_becomes_shorter_is_not_made_longer_by_writes(tmp_path: Path) -> None:
    name, content = full(tmp_path, "aio")
    path = tmp_path / "disk.aio"
    with served(name, "--socket", tmp_path / "s", quiet=False) as server, server.client() as client:
        warm(client)
        os.truncate(path, 2 * MIB)
        cookies = [
            (client.send(WRITE, at, payload=b"w" * 4096), at) for at in range(0, SIZE, 64 * KIB)
        ]
        for cookie, offset in cookies:
            assert client.answer(cookie).error == (0 if offset < 2 * MIB else EIO)
        assert path.stat().st_size == 2 * MIB
        assert client.read(0, 8192) == b"w" * 4096 + content[4096:8192]


def test_requests_of_one_batch_are_done_in_their_order(tmp_path: Path, taken: Taken) -> None:
    """A write is in its place when what came behind it begins: one that has to read first, too."""
    name, content = full(tmp_path, "aio")
    with opened(name) as state:
        wire = Wire(state)
        disk = LateDisk(wire)
        data = wire.make(WRITE, 0, payload=b"1" * 4096)
        data += wire.make(WRITE, 100, payload=b"2" * 100)  # reads its sector, and writes it
        data += wire.make(WRITE, 4096, payload=b"3" * 512)
        data += wire.make(WRITE_ZEROES, 8192, 4096)
        data += wire.make(3)
        wire.feed(data)
        finish(wire, disk)
        expected = b"1" * 100 + b"2" * 100 + b"1" * 3896 + b"3" * 512
        expected += content[4608:8192] + bytes(4096)
        wire.feed(wire.make(READ, 0, 12288))
        finish(wire, disk)
        assert wire.answer().content(0, 12288) == expected
        assert taken["write"] >= 1
        wire.end()


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
    with tapcore.open(name, readonly=False) as disk:
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
