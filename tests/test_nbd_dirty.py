"""The ranges of a dirty bitmap as block status tells them, whatever order a client asks in."""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tapcore import ImageFormatError
from tapcore.nbd.status import MAX_RUNS, Dirty, block_status

SIZE = 1 << 12


class Bitmap:
    """Stands in for an open image with a bitmap whose bits stand for single bytes."""

    def __init__(self, bits: bytearray) -> None:
        self.bits = bits
        self.read = 0
        self.broken = False

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
        return Dirty(cast(Any, SimpleNamespace(drv=self)), "name", live=live)

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
