"""A client and a server with nothing between them: no socket, no process, each step one call."""

import contextlib
import os
import random
import select
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from enginebench import Bench, bench
from nbd_client import DISC, READ, Answer, ReplyParser, request

from tapcore import DiskId, OpenOptions
from tapcore.buffers import BufferPool
from tapcore.files.mapping import content_of, is_mapped
from tapcore.interface.models import TdState
from tapcore.interface.options import CacheMode
from tapcore.interface.registry import default_registry
from tapcore.nbd.exportinfo import Negotiated
from tapcore.nbd.exports import Export
from tapcore.nbd.filespan import FileSpan
from tapcore.nbd.transmission import Transmission
from tapcore.opening.chain import close_disk, open_disk

MIB = 1 << 20


def _sent(item: bytes | memoryview) -> bytes | memoryview:
    """What a system call sends of an item of a reply."""
    if not is_mapped(item):
        return item
    content = content_of(item)
    assert len(content) == len(item)
    return content


class Leases:
    """Who has buffers of the pool."""

    def __init__(self) -> None:
        self.out: dict[int, memoryview] = {}
        self.bytes = 0

    def take(self, view: memoryview) -> memoryview:
        assert id(view) not in self.out
        self.out[id(view)] = view
        self.bytes += len(view)
        return view

    def give(self, view: memoryview) -> None:
        assert self.out.pop(id(view), None) is view, "given back twice, or never taken"
        self.bytes -= len(view)


@contextlib.contextmanager
def every_lease_comes_back() -> Iterator[Leases]:
    """Every buffer of the pool has to come back, once."""
    watch = Leases()
    take, give = BufferPool.take, BufferPool.give

    def watched_give(pool: BufferPool, buffer: memoryview) -> None:
        watch.give(buffer)
        give(pool, buffer)

    def watched_give_all(pool: BufferPool, buffers: list[memoryview]) -> int:
        for buffer in buffers:
            pool.give(buffer)
        return sum(map(len, buffers))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BufferPool, "shelf", lambda pool, size: [])
        patch.setattr(BufferPool, "give_all", watched_give_all)
        patch.setattr(BufferPool, "take", lambda pool, size: watch.take(take(pool, size)))
        patch.setattr(BufferPool, "give", watched_give)
        yield watch
    assert not watch.out, "buffers were not given back"


class Wire:
    """A client and a server with nothing between them.

    Args:
        disk: what is served.
        structured: negotiate structured replies and base:allocation.
        extended: negotiate extended headers instead.
        initial: bytes that came with the handshake.
        rng: for how much is sent at once; without it all is.
        contexts: the metadata contexts negotiated, with ids from 1 on.
    """

    def __init__(
        self,
        disk: TdState,
        *,
        structured: bool = True,
        extended: bool = False,
        initial: bytes = b"",
        rng: random.Random | None = None,
        spans: bool = True,
        reads: bool = True,
        contexts: Sequence[str] = ("base:allocation",),
    ) -> None:
        self.export = Export.of(disk, "")
        self.export.file_spans &= spans
        self.parser = ReplyParser(structured=structured, extended=extended)
        self.sent = bytearray()
        self.reads = reads
        self.ended = False
        self._rng = rng
        self._cookies = 0
        info = self.export.info
        chosen = dict(enumerate(contexts, 1)) if structured or extended else {}
        self.flags = info.transmission_flags
        agreed = Negotiated(info, info.transmission_flags, structured, chosen, extended)
        self.side = Transmission(self.export, agreed, lambda: None, initial)
        self.turn()

    def make(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b""
    ) -> bytes:
        """A request, whose answer is expected from now on."""
        self._cookies += 1
        length = len(payload) or length
        if command != DISC:
            self.parser.expect(command, self._cookies, offset, length)
        return request(
            command,
            self._cookies,
            offset,
            length,
            flags=flags,
            payload=payload,
            extended=self.parser.extended,
        )

    def feed(self, data: bytes, size: int | None = None) -> None:
        """Hand bytes to the server, at most `size` at once, as long as it takes any."""
        view = memoryview(data)
        while len(view):
            assert not self.side.stalled, "it does not read now"
            count = self.feed_once(view if size is None else view[:size])
            view = view[count:]
            self.turn()

    def feed_once(self, data: bytes | memoryview) -> int:
        """One receive; returns how much of `data` it took."""
        space = self.side.space()
        count = min(len(space), len(data))
        assert count
        space[:count] = data[:count]
        self.side.received(count)
        return count

    def turn(self) -> None:
        """What the server does after each batch."""
        while True:
            self.side.engine.turn()
            self.take()
            if self.side.unfinished:
                self.side.go_on()
            elif not self.side.resume():
                return

    def take(self) -> None:
        """The client reads what the server sends, if it does read."""
        replies = self.side.replies
        while self.reads and replies.queue:
            if (replies.lane_reads or replies.late) and not self.side.may_send():
                assert not replies.reads_file, "a reply that was begun cannot go on"
                self.side.engine.turn()
                continue
            first = replies.queue[0]
            if isinstance(first, FileSpan):
                piece = os.pread(first.fd, first.length, first.offset)
                assert len(piece) == first.length
            else:
                piece = b"".join(map(_sent, replies.next_buffers()))
            if self._rng is not None:
                piece = piece[: self._rng.randint(1, len(piece))]
            assert piece
            replies.advance(len(piece))
            self.parser.feed(piece)
            self.sent += piece
        if replies.queue:
            replies.wait()

    def call(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b""
    ) -> Answer:
        """A request, and its answer at once (of a driver that answers at once)."""
        self.feed(self.make(command, offset, length, flags, payload))
        return self.answer()

    def answer(self) -> Answer:
        """Of the last request."""
        answer = self.parser.answers[self._cookies]
        assert answer.done, "not answered yet"
        return answer

    def errors(self) -> list[int]:
        """Of all requests so far."""
        return [answer.error for _, answer in sorted(self.parser.answers.items())]

    def content(self) -> bytes:
        """The whole disk, through its engine."""
        size = self.side.engine.size
        data = b""
        for at in range(0, size, MIB):
            count = min(MIB, size - at)
            data += self.call(READ, at, count).content(at, count)
        return data

    def end(self) -> None:
        """The connection is lost; a second time it cannot be."""
        if not self.ended:
            self.ended = True
            self.side.gone()


@contextlib.contextmanager
def opened(
    name: str, flags: int = 0, cache: CacheMode = "writeback", filters: tuple[Any, ...] = ()
) -> Iterator[TdState]:
    """An image of an installed driver: HANDLE:PATH."""
    handle, _, rest = name.partition(":")
    options = OpenOptions(cache=cache, filters=filters)
    disk = open_disk(DiskId(rest, handle), default_registry(), flags=flags, options=options)
    try:
        yield disk
    finally:
        close_disk(disk)


@contextlib.contextmanager
def ram(size: object = "1M", flags: int = 0, **options: Any) -> Iterator[Wire]:
    """A wire to a disk in memory."""
    with opened(f"ram:{size}", flags) as disk:
        wire = Wire(disk, **options)
        yield wire
        assert wire.side.in_flight == wire.side.held == 0
        wire.end()


@contextlib.contextmanager
def late(
    image: Any, handle: str = "late", flags: int = 0, **options: Any
) -> Iterator[tuple[Wire, Bench]]:
    """A wire to a disk of a driver for tests."""
    with bench([image], handle, flags=flags) as disk:
        wire = Wire(disk.state, **options)
        yield wire, disk
        wire.end()
        disk.drain()
        assert wire.side.in_flight == wire.side.held == 0


def settle(wire: Wire, disk: Bench) -> None:
    """Until the driver has answered everything that the server gave it."""
    wire.turn()
    for _ in range(50_000):
        if not wire.side.in_flight and not wire.side.stalled:
            return
        disk.step()
        wire.turn()
    raise AssertionError("stalled")


class LateDisk:
    """Answers when it is asked to."""

    def __init__(self, wire: Wire) -> None:
        self._engine = wire.side.engine
        self._sources = {fd: (dd, sid) for fd, dd, sid in self._engine.poll_fds()}
        self._poll = select.poll()
        for fd in self._sources:
            self._poll.register(fd, select.POLLIN)

    def answer(self) -> None:
        """Wait for the next thing that can happen; that there is none is what may never be."""
        timeout = self._engine.timeout
        ready = self._poll.poll(60_000 if timeout is None else 1000 * timeout + 1)
        assert ready or timeout is not None, "it waits for what cannot happen"
        for fd, _ in ready:
            self._engine.readable(*self._sources[fd])


def finish(wire: Wire, disk: LateDisk) -> None:
    """Until the disk has answered everything."""
    while wire.side.in_flight:
        disk.answer()
        wire.turn()
    assert (wire.side.held, wire.side.stalled) == (0, False)
