"""Random conversations with a late disk and every limit small: something can always move.

Clients send in small steps and read late; in the middle of a request they read nothing at all. What
the server waits for has to be able to happen: a disk's answer, a client that may send on, or one
that may read, between two requests, what it has asked for.
"""

import os
import random
import time

import pytest
from drivers.late import LateImage
from enginebench import Bench, bench
from nbd_client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    FLUSH,
    FUA,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
)
from nbdwire import Wire, every_lease_comes_back

from tapcore.nbd import constants, streaming, transmission, writes

KIB = 1 << 10
LONGEST = 256 * KIB
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
LENGTHS = [1, 512, 4096, 16 * KIB, 33 * KIB, 100 * KIB, LONGEST, LONGEST + 1]
STYLES = [(False, False), (True, False), (False, True)]
"""Whether replies are structured, and headers extended."""

COMMANDS = [READ] * 3 + [WRITE] * 3 + [WRITE_ZEROES, TRIM, FLUSH, BLOCK_STATUS, CACHE]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transmission, "MAX_HELD", LONGEST)
    monkeypatch.setattr(transmission, "MAX_IN_FLIGHT", 4)
    monkeypatch.setattr(writes, "MAX_SKIPPED", 2 * LONGEST)
    monkeypatch.setattr(writes, "STREAM_MIN", 16 * KIB)
    monkeypatch.setattr(constants, "DEFAULT_BLOCK_MAX", LONGEST)
    monkeypatch.setattr(streaming, "PIECE", 32 * KIB)
    monkeypatch.setattr(streaming, "_WORTH_WRITING", 8 * KIB)


def test_a_stream_that_may_go_on_is_not_stopped_by_replies_that_nobody_reads() -> None:
    """Two limits at once: the server turned round for ever, and served nobody any more."""
    with every_lease_comes_back(), bench([LateImage(4 << 11, now=0.0)]) as disk:
        wire = Wire(disk.state, spans=False, reads=False)
        wire.feed(wire.make(READ, 0, LONGEST // 2, DF))
        disk.wait_for(lambda: not wire.side.in_flight)
        wire.feed(wire.make(READ, 0, LONGEST, DF))
        sent = memoryview(wire.make(WRITE, 1 << 20, payload=b"w" * LONGEST))
        while not wire.side.stalled:
            sent = sent[wire.feed_once(sent[: 16 * KIB]) :]
        assert wire.side.in_flight == 2
        disk.wait_for(lambda: wire.side.replies.unsent > LONGEST)
        disk.wait_for(lambda: wire.side.held <= LONGEST)
        assert wire.side.resume()
        assert not wire.side.resume(), "it only ever goes on"
        while len(sent):
            while wire.side.stalled and not wire.side.resume():  # type: ignore[redundant-expr]
                disk.step()
            sent = sent[wire.feed_once(sent[: 16 * KIB]) :]
        wire.reads = True
        disk.drain()
        wire.turn()
        assert wire.errors() == [0] * 3
        wire.end()


class Talker:
    """A client that does things when it likes, but what it has begun to send it sends first."""

    def __init__(self, wire: Wire, rng: random.Random) -> None:
        self.wire = wire
        self._rng = rng
        self._requests = rng.randint(1, 14)
        self._ends = rng.choice(["waits", "says goodbye", "is lost"])
        self._left = memoryview(b"")
        self.gone = False
        self.eager = rng.random()

    def __repr__(self) -> str:
        side = self.wire.side
        counts = (len(self._left), self._requests, side.in_flight, side.held, side.replies.unsent)
        state = (self.gone, side.stalled, side.finished, side.amid_a_write)
        return f"<to send, to ask, in flight, held, unsent: {counts}; {state}>"

    def _request(self) -> bytes:
        rng, size = self._rng, self.wire.side.engine.size
        command = rng.choice(COMMANDS)
        offset = rng.randrange(size) & -rng.choice([1, 512, 512, 4096])
        length = rng.choice([*LENGTHS, rng.randint(1, LONGEST)])
        if rng.random() < 0.9:
            length = min(length, size - offset)
        if command == WRITE:
            return self.wire.make(WRITE, offset, flags=rng.choice([0, FUA]), payload=bytes(length))
        if command == FLUSH:
            return self.wire.make(FLUSH)
        flags = rng.choice([0, DF]) if command == READ else 0
        return self.wire.make(command, offset, length, flags)

    def send(self) -> bool:
        """One receive of the server; returns whether anything moved."""
        side = self.wire.side
        if self.gone or side.finished:
            self._left, self._requests = memoryview(b""), 0
            return False
        if not len(self._left) and self._requests:
            self._requests -= 1
            self._left = memoryview(self._request())
        elif not len(self._left) and self._ends != "waits":
            goodbye, self._ends = self._ends == "says goodbye", "waits"
            if goodbye:
                self._left = memoryview(self.wire.make(DISC))
            else:
                self.lose()
        if not len(self._left) or side.stalled:
            return False
        step = self._rng.choice([1, 28, 4 * KIB, 64 * KIB, len(self._left)])
        self._left = self._left[self.wire.feed_once(self._left[:step]) :]
        return True

    def read(self) -> bool:
        """One piece of what waits for it; returns whether anything moved."""
        side = self.wire.side
        unheard = side.stalled and not side.amid_a_write  # its request is not begun by the server
        if self.gone or not side.replies.queue or (len(self._left) and not unheard):
            return False
        piece = b"".join(side.replies.next_buffers())
        piece = piece[: self._rng.choice([100, 4 * KIB, len(piece)])]
        side.replies.advance(len(piece))
        self.wire.parser.feed(piece)
        return True

    def lose(self) -> None:
        self._left, self.gone = memoryview(b""), True
        self.wire.end()

    @property
    def done(self) -> bool:
        side = self.wire.side
        return self.gone or not (
            len(self._left) or self._requests or side.in_flight or side.replies.queue
        )


def turn(disk: Bench, talkers: list[Talker]) -> bool:
    """As the server's, after each batch; returns whether anything came of it.

    Something may without an event: what a driver had no room for is tried again after a time.
    """
    before, resumed = disk.engine.in_flight, False
    for _ in range(1000):
        disk.engine.turn()
        went_on = [each for each in talkers if not each.gone and each.wire.side.resume()]
        if not went_on:
            return resumed or disk.engine.in_flight != before
        resumed = True
    raise AssertionError("it only ever goes on")


def move(disk: Bench, talkers: list[Talker], *, all_of_them: bool) -> bool:
    """A batch of events, some of those that there may be; returns whether anything moved."""
    moved = False
    for each in disk.rng.sample(talkers, len(talkers)):
        if all_of_them or disk.rng.random() < each.eager:
            moved |= each.send()
        if all_of_them or disk.rng.random() > each.eager:
            moved |= each.read()
    moved |= turn(disk, talkers)
    for source in disk.ready() if all_of_them or disk.rng.random() < 0.5 else ():
        disk.engine.readable(*source)
        moved = True
    return turn(disk, talkers) or moved


def talk(disk: Bench, talkers: list[Talker]) -> None:
    """Until everything is said, or nothing can move any more."""

    def over() -> bool:
        return all(each.done for each in talkers) and not disk.engine.in_flight

    while not over():
        if move(disk, talkers, all_of_them=False) or move(disk, talkers, all_of_them=True):
            continue
        timeout = disk.engine.timeout
        assert timeout is not None or over(), f"nothing can move any more: {talkers}"
        time.sleep(timeout or 0)


@pytest.mark.parametrize("number", range(20 * THOROUGH))
def test_a_conversation_comes_to_its_end(number: int, rng: random.Random) -> None:
    image = LateImage(
        rng.choice([64, 1024, 3072]) << 1,
        cluster=rng.choice([8, 64, 2048]),
        sector_size=rng.choice([512, 512, 4096]),
        seed=rng.randrange(1 << 32),
        now=rng.choice([0.0, 0.0, 0.3, 1.0]),
        depth=rng.choice([None, None, 1, 8]),
        busy=rng.choice([0.0, 0.0, 0.2]),
        zero=rng.choice(["yes", "no", "raise", "mixed"]),
    )
    handle = rng.choice(["late", "latefull"])
    with every_lease_comes_back(), bench([image], handle, rng=rng) as disk:
        talkers = [
            Talker(
                Wire(
                    disk.state,
                    spans=False,
                    reads=False,
                    structured=structured,
                    extended=extended,
                ),
                rng,
            )
            for structured, extended in rng.choices(STYLES, k=rng.randint(1, 4))
        ]
        talk(disk, talkers)
        for each in talkers:
            side = each.wire.side
            assert (side.in_flight, side.held) == (0, 0)
            assert each.gone or side.error or all(a.done for a in each.wire.parser.answers.values())
            each.wire.end()
