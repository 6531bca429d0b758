"""What a disk's counters say is what its clients did, exactly, whichever way the requests went."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_client import (
    BLOCK_STATUS,
    CACHE,
    FLUSH,
    FUA,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Client,
)
from servedhere import served_here

import tapcore
from tapcore.metrics.operations import SIZES, size_class
from tapcore.metrics.page import Page
from tapcore.metrics.publishing import Metrics
from tapcore.metrics.reading import Snapshot, read_fd
from tapcore.ring.client import RingClient
from tapcore.ring.frontend import Pending
from tapcore.ring.wire import DISCARD_SECURE, Op

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB
NAMES = {
    READ: "read",
    WRITE: "write",
    FLUSH: "flush",
    TRIM: "discard",
    WRITE_ZEROES: "zero",
    CACHE: "cache",
    BLOCK_STATUS: "status",
    9: "other",
}


class Did:
    """What a client has done, to be compared with what was counted."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()

    def note(self, name: str, length: int, *, failed: bool) -> None:
        place = name, SIZES[size_class(length)]
        self.answered[place] += 1
        self.errors[place] += failed
        self.bytes[place] += 0 if failed else length

    def compare(self, seen: Snapshot) -> None:
        found = seen.cells
        assert {place: counts.answered for place, counts in found.items()} == self.answered
        assert {place: counts.errors for place, counts in found.items()} == dict(self.errors)
        assert {place: counts.bytes for place, counts in found.items()} == dict(self.bytes)
        for counts in found.values():
            assert counts.total.count == counts.answered
            driven = counts.driver.count
            assert driven == counts.waiting.count == counts.replying.count
            assert driven + counts.moved <= counts.answered


def settled(page: Page, did: Did) -> Snapshot:
    """What is shown when all clients have gone, and not what was before the last of them came."""
    awaited = did.answered.total()
    for _ in range(3000):
        seen = read_fd(page.fileno())
        shown = sum(counts.answered for counts in seen.cells.values())
        if not seen.clients and shown >= awaited:
            assert not seen.torn
            assert not seen.in_flight
            return seen
        time.sleep(0.01)
    raise AssertionError("the clients stay, or something was not counted")


def do(client: Client, did: Did, wanted: list[tuple[int, int, int]], rng: random.Random) -> None:
    """Send requests all at once, take the answers."""
    asked = []
    for command, offset, length in wanted:
        payload = os.urandom(length) if command == WRITE else b""
        flags = FUA if command == WRITE and rng.random() < 0.1 else 0
        size = 0 if payload else length
        cookie = client.send(command, offset, size, flags=flags, payload=payload)
        asked.append((cookie, command, length))
    for cookie, command, length in asked:
        did.note(NAMES[command], length, failed=bool(client.answer(cookie).error))


def mixed(rng: random.Random, count: int) -> Iterator[tuple[int, int, int]]:
    """Requests of all kinds, sizes and places, some of which cannot be."""
    sizes = [0, 512, 4 * KIB, 4 * KIB, 5000, 16 * KIB, 64 * KIB, 200 * KIB, MIB, 2 * MIB]
    kinds = [READ] * 5 + [WRITE] * 5 + [FLUSH, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS, 9]
    for _ in range(count):
        command, length = rng.choice(kinds), rng.choice(sizes)
        if command in (FLUSH, 9):
            yield command, 0, 0
            continue
        offset = rng.randrange(SIZE - length + (4 * KIB if rng.random() < 0.1 else 0))
        if rng.random() < 0.8:
            offset &= -4096
        yield command, offset, length


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("handle", ["aio", "sync", "qcow2", "ram"])
def test_what_clients_did_is_what_was_counted(
    handle: str, structured: bool, tmp_path: Path
) -> None:
    name = f"{handle}:{SIZE}" if handle == "ram" else f"{handle}:{tmp_path / 'disk'}"
    if handle in ("aio", "sync"):
        (tmp_path / "disk").write_bytes(os.urandom(SIZE))
    elif handle != "ram":
        tapcore.create_image(name, SIZE)
    rng, did, metrics = random.Random(f"{handle}{structured}"), Did(), Metrics()
    with served_here(name, metrics=metrics) as here:
        (page,) = metrics.pages
        for depth in (1, 32, 7):
            with here.client(structured=structured) as client:
                wanted = list(mixed(rng, 100))
                for start in range(0, len(wanted), depth):
                    do(client, did, wanted[start : start + depth], rng)
        did.compare(settled(page, did))


def test_a_client_that_asks_one_by_one_is_counted_meanwhile(
    tmp_path: Path, rng: random.Random
) -> None:
    (tmp_path / "disk").write_bytes(os.urandom(SIZE))
    metrics, did = Metrics(), Did()
    with served_here(f"aio:{tmp_path / 'disk'}", metrics=metrics) as here:
        (page,) = metrics.pages

        def shown() -> int:
            return sum(each.answered for each in read_fd(page.fileno()).cells.values())

        with here.client() as client:
            for _ in range(3):  # each later than what was shown before
                before = shown()
                while shown() == before:
                    do(client, did, [(READ, 4 * KIB, 4 * KIB)], rng)
                    do(client, did, [(WRITE, MIB, 4 * KIB)], rng)
        did.compare(settled(page, did))


def test_what_comes_when_all_was_shown_is_looked_at_and_so_shown_too() -> None:
    metrics = Metrics()
    metrics.meter("a", image="", driver="", size=SIZE)
    batch = metrics.batch
    batch.count()
    assert batch.next > 0
    armed = []
    for _ in range(2):
        metrics.publish()
        armed.append(batch.armed)
    assert armed == [True, False]
    assert batch.next == 0
    metrics.close()


# ---- through a ring ----------------------------------------------------------------------------

RING_SIZES = [512, 4 * KIB, 4 * KIB, 4 * KIB, 5 * 512, 16 * KIB, 44 * KIB, 64 * KIB, 200 * KIB, MIB]
RING_NAMES = ["read"] * 5 + ["write"] * 5 + ["flush", "barrier", "discard", "other"]


def put(client: RingClient, name: str, length: int, rng: random.Random) -> tuple[str, int, Pending]:
    """Put a request, which perhaps cannot be; returns as what it counts, and its bytes."""
    front = client.front
    offset = rng.randrange(SIZE - length + (4 * KIB if rng.random() < 0.1 else 0)) & -512
    if rng.random() < 0.8:
        offset &= -4096
    if name == "read":
        return name, length, front.read(offset, length)
    if name == "write":
        return name, length, front.write(offset, os.urandom(length))
    if name == "discard":
        flag = DISCARD_SECURE if rng.random() < 0.3 else 0
        return name, length, front.discard(offset, length, flag)
    if name == "other":
        return name, 0, front.write(0, b"", 9)
    operation = Op.WRITE_BARRIER if name == "barrier" else Op.FLUSH_DISKCACHE
    length = min(length, 44 * KIB) if rng.random() < 0.5 else 0
    made = front.write(offset, os.urandom(length), operation)
    return ("write" if length else "flush"), length, made


def do_through(client: RingClient, did: Did, depth: int, rng: random.Random) -> None:
    """Put up to so many requests all at once, take the answers."""
    made = []
    for _ in range(depth):
        name, length = rng.choice(RING_NAMES), rng.choice(RING_SIZES)
        if client.front.room_for(length):
            made.append(put(client, name, length, rng))
    while client.front.pending:
        for each in client.wait():
            client.front.done(each)
    for name, length, pending in made:
        did.note(name, length, failed=pending.status != 0)


@pytest.mark.parametrize("handle", ["aio", "sync", "qcow2", "ram"])
def test_what_front_ends_did_is_what_was_counted(handle: str, tmp_path: Path) -> None:
    name = f"{handle}:{SIZE}" if handle == "ram" else f"{handle}:{tmp_path / 'disk'}"
    if handle in ("aio", "sync"):
        (tmp_path / "disk").write_bytes(os.urandom(SIZE))
    elif handle != "ram":
        tapcore.create_image(name, SIZE)
    rng, did, metrics = random.Random(handle), Did(), Metrics()
    with served_here(name, metrics=metrics, ring=tmp_path / "ring") as here:
        (page,) = metrics.pages
        for depth in (1, 30, 7):
            with RingClient(tmp_path / "ring") as client, here.client() as beside:
                for _ in range(100 // depth):
                    do_through(client, did, depth, rng)
                    do(beside, did, list(mixed(rng, 3)), rng)
        seen = settled(page, did)
        did.compare(seen)
        assert not seen.gone
        moved = sum(counts.moved for counts in seen.cells.values())
        driven = sum(counts.driver.count for counts in seen.cells.values())
        assert driven
        assert moved


def test_a_ring_that_keeps_its_server_busy_is_counted_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(os.urandom(SIZE))
    metrics, done, deadline = Metrics(), 0, time.monotonic() + 30
    with (
        served_here(f"sync:{tmp_path / 'disk'}", metrics=metrics, ring=tmp_path / "ring"),
        RingClient(tmp_path / "ring") as client,
    ):
        (page,) = metrics.pages
        for goal in (1, 200, 400):  # each later than the one before was shown
            goal = max(goal, done)
            while sum(each.answered for each in read_fd(page.fileno()).cells.values()) < goal:
                assert time.monotonic() < deadline
                for _ in range(20):
                    client.read(4096 * (done % 2048), 4096)
                    done += 1
