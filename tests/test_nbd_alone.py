"""A request that comes alone: answered in one go where it lies in the lane, else left to others."""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from nbd_client import EIO, FLUSH, FUA, READ, WRITE
from nbdwire import Wire, opened

from diskmodel import drive
from peers import missing
from tapcore.engine.loop import Loop
from tapcore.files.imagefile import ImageFile
from tapcore.files.mappable import maps_well, writes_pay
from tapcore.files.windows import Windows
from tapcore.nbd.alone import Alone

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
CONTENT = random.Random(5).randbytes(SIZE)


@attrs.define
class Alones:
    """A client, and the server's end of its socket."""

    path: Path
    wire: Wire
    client: socket.socket
    alone: Alone

    def send(self, command: int, offset: int, length: int = 0, **more: object) -> None:
        """A request, whole."""
        self.client.sendall(self.wire.make(command, offset, length, **more))  # type: ignore[arg-type]

    def receive(self) -> bool | None:
        """The server is told that something came; what it has sent by itself is taken."""
        answered = self.alone.receive()
        while True:
            try:
                self.wire.parser.feed(self.client.recv(MIB, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return answered

    def ordinary_way(self) -> None:
        """What `receive` leaves to others."""
        self.wire.side.received(0)
        self.wire.turn()
        drive(self.wire.side.engine)
        self.wire.turn()


@pytest.fixture
def alones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Alones]:
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    with open(path, "rb") as file:
        if not maps_well(file.fileno()):
            missing("the scratch directory's file system is not mapped")
    client, server = socket.socketpair()
    server.setblocking(False)
    with opened(f"aio:{path}") as disk, client, server:
        wire = Wire(disk)
        wire.call(WRITE, 0, payload=CONTENT[:512])  # before the first change all is prepared
        yield Alones(path, wire, client, Alone(server, wire.side, Loop()))
        assert not wire.side.in_flight
        wire.end()


def test_a_read_and_a_write_are_answered_in_one_go(alones: Alones) -> None:
    alones.send(READ, MIB, 4 * KIB)
    assert alones.receive() is True
    assert alones.wire.answer().content(MIB, 4 * KIB) == CONTENT[MIB:][: 4 * KIB]
    alones.send(WRITE, MIB, payload=b"w" * 4 * KIB)
    assert alones.receive() is True
    assert not alones.wire.answer().error
    assert alones.path.read_bytes()[MIB : MIB + 4 * KIB] == b"w" * 4 * KIB
    replies = alones.wire.side.replies
    assert replies.sent == replies.queued
    assert not replies.lane_reads


def test_nothing_that_came_is_nothing_to_do(alones: Alones) -> None:
    assert alones.receive() is True


def test_a_client_that_left_is_not_noticed_here(alones: Alones) -> None:
    alones.client.shutdown(socket.SHUT_WR)
    assert alones.receive() is None


@pytest.mark.parametrize(
    ("command", "offset", "more"),
    [
        (FLUSH, 0, {}),
        (WRITE, MIB, {"flags": FUA, "payload": b"f" * 4 * KIB}),
        (WRITE, 100, {"payload": b"u" * 1000}),
        (READ, SIZE - 4 * KIB, {"length": 8 * KIB}),
        (READ, 100, {"length": 1000}),
        (READ, 0, {"length": MIB}),
    ],
)
def test_what_is_not_in_the_lane_is_left_as_it_came(
    command: int, offset: int, more: dict[str, object], alones: Alones
) -> None:
    alones.send(command, offset, **more)  # type: ignore[arg-type]
    assert alones.receive() is False
    assert not alones.wire.side.replies.queue
    alones.ordinary_way()
    assert alones.wire.answer().done


def test_requests_that_come_together_or_in_parts_are_parsed(alones: Alones) -> None:
    data = b"".join(alones.wire.make(READ, at, 4 * KIB) for at in (0, MIB))
    alones.client.sendall(data)
    assert alones.receive() is False
    alones.ordinary_way()
    request = alones.wire.make(WRITE, 0, payload=b"p" * 4 * KIB)
    parts = (20, 28, 100, len(request))
    for start, end in zip((0, *parts), parts, strict=False):
        alones.client.sendall(request[start:end])
        assert alones.receive() is (end != 20)  # of half a head nobody knows what it is
    assert alones.wire.answer().done
    assert alones.wire.errors() == [0] * 4


def test_a_client_that_takes_nothing_gets_the_rest_later(alones: Alones) -> None:
    alones.alone._send = lambda items: 10  # what there was room for
    alones.send(READ, MIB, 4 * KIB)
    assert alones.alone.receive() is False
    assert alones.wire.side.replies.unsent
    assert alones.alone.receive() is None  # first come, first served


def test_a_file_that_became_shorter_is_left_to_the_engine(
    alones: Alones, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen at the look at its end, or told by the kernel where that look comes too early."""
    os.truncate(alones.path, MIB)
    alones.send(READ, 2 * MIB, 4 * KIB)
    with monkeypatch.context() as patch:
        patch.setattr(Windows, "shrunk", lambda _: False)
        assert alones.alone.receive() is False
    alones.ordinary_way()
    assert alones.wire.answer().error == EIO
    alones.send(READ, 3 * MIB, 4 * KIB)
    assert alones.alone.receive() is False
    alones.ordinary_way()
    assert alones.wire.answer().error == EIO


def test_small_writes_are_copied_once(alones: Alones, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the memory that they were received in, once it is known that they come often."""
    monkeypatch.setattr("tapcore.files.windows.OFTEN", 0)
    with open(alones.path, "rb") as file:
        if not writes_pay(file.fileno()):
            missing("the scratch directory does not lie on ext4")
    copied: list[int] = []
    mapped = ImageFile.write_mapped

    def counted(file: ImageFile, offset: int, content: memoryview, now: float) -> bool:
        copied.append(offset)
        return mapped(file, offset, content, now)

    monkeypatch.setattr(ImageFile, "write_mapped", counted)
    model = bytearray(alones.path.read_bytes())
    for number in range(8):
        content, at = bytes([number]) * 4 * KIB, number * 12 * KIB
        alones.send(WRITE, at, payload=content)
        assert alones.receive() is True
        assert not alones.wire.answer().error
        model[at : at + 4 * KIB] = content
    assert alones.path.read_bytes() == model
    assert copied == [0]
