"""One refcount block in memory, for every width from 1 to 64 bits.

Source: qcow2.rst, "Host cluster management".
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterator
from typing import Final

from tap_qcow2.ondisk import bigendian
from tap_qcow2.ondisk.bigendian import Words

_TYPECODES: Final = {3: "B", 4: "H", 5: "I", 6: "Q"}


class RefcountBlock:
    """The refcounts of consecutive host clusters.

    Attributes:
        values: one item a cluster; of at least a byte, whatever the width on disk.
        offset: where the block lies in the file, bytes.
        dirty: changed since it was last written.
        pinned: being written: it must not be read from disk yet.
        full_below: no item before this one is zero.
    """

    __slots__ = ("dirty", "full_below", "offset", "order", "pinned", "values")

    def __init__(self, order: int, offset: int, values: Words) -> None:
        self.order = order
        self.offset = offset
        self.values = values
        self.dirty = False
        self.pinned = False
        self.full_below = 0

    @classmethod
    def parse(cls, order: int, offset: int, content: bytes) -> RefcountBlock:
        """From the bytes on disk.

        Args:
            order: log2 of the width in bits.
            offset: where it lies, bytes.
            content: a cluster.
        """
        if order >= 3:
            return cls(order, offset, bigendian.from_bytes(content, _TYPECODES[order]))
        unpacked = b"".join(map(_unpacking(order).__getitem__, content))
        return cls(order, offset, array("B", unpacked))

    @classmethod
    def empty(cls, order: int, offset: int, entries: int) -> RefcountBlock:
        """A new one: all free."""
        return cls(order, offset, bigendian.zeroes(entries, _TYPECODES.get(order, "B")))

    def serialize(self) -> bytes:
        """The bytes on disk."""
        if self.order >= 3:
            return bigendian.to_bytes(self.values)
        bits = 1 << self.order
        per_byte = 8 // bits
        raw = self.values.tobytes()
        total = bytearray(len(raw) // per_byte)
        for place in range(per_byte):
            shifted = _shifts(bits * place)
            part = raw[place::per_byte].translate(shifted)
            total = bytearray(
                (int.from_bytes(total, "little") | int.from_bytes(part, "little")).to_bytes(
                    len(total), "little"
                )
            )
        return bytes(total)

    def find_free(self, start: int) -> int | None:
        """The first free cluster from an item on; None: there is none."""
        start = max(start, self.full_below)
        try:
            return self.values.index(0, start)
        except ValueError:
            return None

    def free_run(self, start: int, most: int) -> int:
        """How many clusters from a free one on are free, `most` at most."""
        values, end = self.values, min(start + most, len(self.values))
        if most > 8 and not any(values[start:end]):
            return end - start
        at = start
        while at < end and not values[at]:
            at += 1
        return at - start

    def free_runs(self, at: int, end: int) -> Iterator[tuple[int, int]]:
        """The free clusters between two items: (first item, how many side by side)."""
        values = self.values
        while at < end:
            run = 0 if values[at] else self.free_run(at, end - at)
            if run:
                yield at, run
            at += run or 1


@functools.cache
def _unpacking(order: int) -> list[bytes]:
    """What each byte on disk holds; the lower bits are the earlier clusters."""
    bits = 1 << order
    mask = (1 << bits) - 1
    return [bytes(byte >> place & mask for place in range(0, 8, bits)) for byte in range(256)]


@functools.cache
def _shifts(count: int) -> bytes:
    return bytes((value << count) & 0xFF for value in range(256))
