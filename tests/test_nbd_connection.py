"""A connection whose request meets a bug: it costs that client alone, and one line in the log."""

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from nbd_client import READ, ReplyParser, hello, request

from tapcore import DiskId, OpenOptions
from tapcore.engine.loop import Loop
from tapcore.interface.registry import default_registry
from tapcore.nbd import transmission
from tapcore.nbd.clients import Clients
from tapcore.nbd.connection import Connection
from tapcore.nbd.exports import Export, Exports
from tapcore.opening.chain import close_disk, open_disk


class Side:
    """A server without a listening socket, and its clients, in one thread."""

    def __init__(self) -> None:
        options = OpenOptions()
        self.disk = open_disk(DiskId("1M", "ram"), default_registry(), options=options)
        self.exports = Exports([Export.of(self.disk, "")])
        self.loop = Loop()
        self.clients = Clients()
        self.ends: list[socket.socket] = []
        self.loop.after_batch.append(self._after_batch)

    def _after_batch(self) -> None:
        while self.clients.dirty:
            dirty, self.clients.dirty = self.clients.dirty, set()
            for connection in dirty:
                if connection.open and connection.service():
                    self.clients.dirty.add(connection)

    def client(self) -> tuple[socket.socket, Connection]:
        """Past its handshake."""
        mine, theirs = socket.socketpair()
        self.ends.append(mine)
        connection = Connection(theirs, self.exports, self.loop, self.clients)
        mine.settimeout(0)
        mine.sendall(hello())
        self.turn()
        assert mine.recv(4096)
        return mine, connection

    def turn(self) -> None:
        for _ in range(5):
            self.loop.run_once(timeout=0)

    def read(self, mine: socket.socket) -> bytes:
        parser = ReplyParser(structured=True)
        parser.expect(READ, 1, 0, 512)
        mine.sendall(request(READ, 1, 0, 512))
        self.turn()
        parser.feed(mine.recv(4096))
        return parser.answers[1].content(0, 512)

    def close(self) -> None:
        for connection in list(self.clients.all):
            connection.drop()
        for end in self.ends:
            end.close()
        self.loop.close()
        close_disk(self.disk)


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    made.close()


@pytest.mark.parametrize("where", ["received", "resume", "gone and received", "finish"])
def test_a_bug_costs_one_client(
    side: Side, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, _ = side.client()
    bad, connection = side.client()

    def fails(*_: Any) -> Any:
        raise ValueError("a bug")

    with caplog.at_level(logging.ERROR), monkeypatch.context() as patch:
        for method in where.split(" and "):
            patch.setattr(transmission.Transmission, method, fails)
        bad.sendall(request(READ, 1, 0, 512))
        if where == "finish":
            bad.shutdown(socket.SHUT_WR)
        side.turn()
    assert not connection.open
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert 1 <= len(told) <= 2
    assert side.read(good) == bytes(512)
    good_again, _ = side.client()
    assert side.read(good_again) == bytes(512)


def test_a_client_that_is_gone_in_the_same_batch(side: Side) -> None:
    first, one = side.client()
    second, two = side.client()
    first.sendall(request(READ, 1, 0, 512))
    second.sendall(request(READ, 1, 0, 512))
    first.close()
    two.drop()
    side.turn()
    assert not one.open
    assert not side.clients.all
