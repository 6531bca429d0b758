"""Tables in memory: numbers, which of them have changed, and their bytes in the file."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import ClassVar, Final, Literal, TypeAlias

import attrs

Numbers: TypeAlias = "array[int]"

Write: TypeAlias = tuple[int, bytes]
"""Offset in the file (bytes), and content."""

_MANY: Final = 256


@attrs.frozen
class Coding:
    """How the numbers of a table lie in the file.

    Attributes:
        typecode: of `array`: "Q" for 64 bits, "I" for 32, "B" for bytes of bits.
        order: of their bytes.
    """

    typecode: Literal["Q", "I", "H", "B"]
    order: Literal["big", "little"] = "big"

    def decode(self, content: bytes) -> Numbers:
        """The numbers that bytes of a file hold (whole ones)."""
        numbers = array(self.typecode, content)
        if self.order != sys.byteorder:
            numbers.byteswap()
        return numbers

    def encode(self, numbers: Numbers) -> bytes:
        """The bytes of a file that hold these numbers; the array stays as it is."""
        if self.order != sys.byteorder:
            numbers = numbers[:]
            numbers.byteswap()
        return numbers.tobytes()

    def zeroes(self, count: int) -> Numbers:
        """So many zeroes."""
        numbers = array(self.typecode)
        return array(self.typecode, bytes(numbers.itemsize * count))


class Table:
    """A table in memory, and which parts of it are not on disk.

    Args:
        index: which one it is.
        offset: where it lies in the file, bytes.
        entries: its numbers.
        coding: how these lie there.
        fresh: nothing on disk points to it yet: it is written whole.

    Attributes:
        dirty: numbers of the blocks that have changed.
        sound: all its entries can be true, and may be written through; a format that has to look
            before it knows says False until then.
    """

    __slots__ = ("coding", "dirty", "entries", "fresh", "index", "offset", "sound")

    block_shift: ClassVar[int] = 6
    """log2 of the numbers in a block: of 64 bits each, those of a sector."""

    def __init__(
        self, index: int, offset: int, entries: Numbers, coding: Coding, *, fresh: bool = False
    ) -> None:
        self.index = index
        self.offset = offset
        self.entries = entries
        self.coding = coding
        self.fresh = fresh
        self.sound = True
        self.dirty: set[int] = set()

    def set(self, first: int, numbers: Iterable[int]) -> None:
        """Change entries from one on; see `TableCache.set` for a table that is in a cache."""
        new = array(self.coding.typecode, numbers)
        end, shift = first + len(new), self.block_shift
        self.entries[first:end] = new
        self.dirty.add(first >> shift)
        self.dirty.update(range((first >> shift) + 1, (end - 1 >> shift) + 1))

    def set_one(self, at: int, number: int) -> None:
        """Change one entry; see `TableCache.set_one` for a table that is in a cache."""
        self.entries[at] = number
        self.dirty.add(at >> self.block_shift)

    def content(self) -> Write:
        """All of it."""
        return self.offset, self.coding.encode(self.entries)

    def changes(self) -> list[Write]:
        """The blocks that have changed; neighbours in one write."""
        size, entries = 1 << self.block_shift, self.entries
        writes: list[Write] = []
        numbers = sorted(self.dirty)
        while numbers:
            first, count = numbers[0], 1
            while count < len(numbers) and numbers[count] == first + count:
                count += 1
            part = entries[first * size : (first + count) * size]
            at = self.offset + first * size * entries.itemsize
            writes.append((at, self.coding.encode(part)))
            del numbers[:count]
        return writes


def same_until(entries: Numbers, at: int, stop: int) -> int:
    """The first entry, up to `stop`, that is not the number of the one at `at`."""
    number = entries[at]
    many = entries[at : at + 1] * _MANY
    while at < stop:
        if at + _MANY <= stop and entries[at : at + _MANY] == many:
            at += _MANY
        elif entries[at] != number:
            return at
        else:
            at += 1
    return stop


def rising_until(entries: Numbers, at: int, stop: int, step: int = 1) -> int:
    """The first entry, up to `stop`, that is not `step` more than the one before it."""
    following = entries[at] + step
    at += 1
    while at < stop and entries[at] == following:
        at, following = at + 1, following + step
    return at


def count_from(entries: Numbers, index: int, stop: int, number: int) -> int:
    """How many entries from one on are a number, up to `stop`; those past the table's end are."""
    last = min(stop, len(entries))
    if index < last:
        if entries[index] != number:
            return 0
        until = same_until(entries, index, last)
        if until < last:
            return until - index
    return stop - index
