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

    def note(self, command: int, length: int, *, failed: bool) -> None:
        place = NAMES[command], SIZES[size_class(length)]
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


def settled(page: Page) -> Snapshot:
    """What is shown when all clients have gone."""
    for _ in range(3000):
        seen = read_fd(page.fileno())
        if not seen.clients:
            assert not seen.torn
            assert not seen.in_flight
            return seen
        time.sleep(0.01)
    raise AssertionError("the clients stay")


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
        did.note(command, length, failed=bool(client.answer(cookie).error))


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
        did.compare(settled(page))
