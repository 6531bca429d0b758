"""The ranges of a dirty bitmap as block status tells them, whatever order a client asks in."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from drivers.late import LateImage
from nbd_client import BLOCK_STATUS, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES
from nbdwire import LateDisk, Wire, finish, late, opened, settle

from tapcore import ImageFormatError
from tapcore.nbd.status import MAX_RUNS, Dirty, block_status

SIZE = 1 << 12


class Bitmap:
    """Stands in for an open image with a bitmap whose bits stand for single bytes."""

    def __init__(self, bits: bytearray) -> None:
        self.bits = bits
        self.read = 0
        self.broken = False
        self.mark = 0

    def td_bitmap_ranges(self, dd: object, name: str) -> Iterator[tuple[int, int]]:
        at = 0
        while (start := self.bits.find(1, at)) >= 0:
            at = self.bits.find(0, start)
            at = len(self.bits) if at < 0 else at
            if self.broken:
                raise ImageFormatError("has a bitmap that is broken")
            self.read += 1
            yield start, at - start

    def context(self, *, live: bool) -> Dirty:
        """Of a disk that is written all the time, or whose `mark` says when."""
        mark = (lambda: None) if live else (lambda: self.mark)
        return Dirty(cast(Any, SimpleNamespace(drv=self)), "name", mark)

    def runs(self, offset: int, length: int) -> list[tuple[int, int]]:
        """What is to be told."""
        found: list[tuple[int, int]] = []
        for bit in self.bits[offset : offset + length]:
            size = found.pop()[0] if found and found[-1][1] == bit else 0
            found.append((size + 1, bit))
        return found


def bits(rng: random.Random) -> bytearray:
    content = bytearray()
    while len(content) < SIZE:
        content += bytes([rng.randrange(2)]) * rng.choice([1, 3, 40, 300])
    return content[:SIZE]


@pytest.mark.parametrize("live", [False, True])
def test_in_any_order(rng: random.Random, live: bool) -> None:
    for _ in range(20):
        bitmap = Bitmap(bits(rng))
        context = bitmap.context(live=live)
        for _ in range(30):
            offset = rng.randrange(SIZE)
            length = rng.randint(1, SIZE - offset)
            wanted = bitmap.runs(offset, length)
            assert block_status(context, offset, length) == wanted
            assert block_status(context, offset, length, only_one=True) == wanted[:1]
            if live:
                bitmap.bits[rng.randrange(SIZE)] = 1


def test_front_to_back_is_read_once() -> None:
    bitmap = Bitmap(bytearray(b"\1\0" * 3 * MAX_RUNS))
    context = bitmap.context(live=False)
    size = at = 6 * MAX_RUNS
    for at in range(0, size, MAX_RUNS):
        assert len(block_status(context, at, size - at)) == MAX_RUNS
    assert bitmap.read == 3 * MAX_RUNS


def test_an_error_is_told_again() -> None:
    bitmap = Bitmap(bytearray(b"\0" * 99 + b"\1"))
    context = bitmap.context(live=False)
    bitmap.broken = True
    for _ in range(2):
        with pytest.raises(ImageFormatError):
            block_status(context, 0, 100)
    bitmap.broken = False
    assert block_status(context, 0, 100) == [(99, 0), (1, 1)]


def test_what_was_written_since_is_seen(rng: random.Random) -> None:
    """Ranges that were read are kept as long as nothing is written, on a server that may write."""
    bitmap = Bitmap(bits(rng))
    context = bitmap.context(live=False)
    for at in range(0, SIZE, 64):
        if rng.random() < 0.3:
            bitmap.bits[rng.randrange(SIZE)] ^= 1
            bitmap.mark += 1
        assert block_status(context, at, 64) == bitmap.runs(at, 64)


def test_one_run_at_a_time_is_read_once() -> None:
    """As QEMU asks (REQ_ONE): 1000 ranges are not read a thousand times."""
    bitmap = Bitmap(bytearray(b"\1\0" * 1000))
    context = bitmap.context(live=False)
    for at in range(2000):
        assert block_status(context, at, 2000 - at, only_one=True) == [(1, 1 - at % 2)]
    assert bitmap.read == 1000


def test_what_an_engine_says_of_changes() -> None:
    """Whatever way content may change, its mark is another one afterwards, and none meanwhile."""
    with late(LateImage(4096, now=0.0, cluster=16), "latefull") as (wire, disk):
        engine = wire.side.engine
        marks = [engine.content_mark]
        for command, offset, length in (
            (WRITE, 0, 65536),
            (WRITE, 100, 77),
            (WRITE, 0, 1 << 20),
            (WRITE_ZEROES, 4096, 65536),
            (WRITE_ZEROES, 77, 900),
            (TRIM, 65536, 65536),
        ):
            payload = b"w" * length if command == WRITE else b""
            wire.feed(wire.make(command, offset, length, 0, payload))
            assert engine.content_mark is None
            settle(wire, disk)
            marks.append(engine.content_mark)
        assert None not in marks
        assert len(set(marks)) == len(marks)
        wire.feed(wire.make(READ, 0, 65536) + wire.make(FLUSH) + wire.make(BLOCK_STATUS, 0, 512))
        settle(wire, disk)
        assert engine.content_mark == marks[-1]


def test_a_write_in_place_is_a_change_too(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with opened(f"aio:{tmp_path / 'disk'}") as disk:
        wire = Wire(disk)
        before = wire.side.engine.content_mark
        wire.feed(wire.make(WRITE, 0, payload=b"w" * 4096))
        finish(wire, LateDisk(wire))
        assert wire.side.engine.content_mark not in (before, None)
        wire.end()
