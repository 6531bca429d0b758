"""One call of a queue hook, and what the driver has answered."""

from __future__ import annotations

from typing import Final

import attrs

from tapcore.constants import SECTOR_SHIFT
from tapcore.testkit.failing import run_of

MARGIN: Final = 512
"""Bytes before and behind what a driver is given, which are none of its business."""

_REUSED: Final = b"\xdb"


@attrs.define(eq=False)
class Asked:
    """One call of a queue hook, and what has been answered.

    Attributes:
        number: the hook's `id`.
        op: "read", "write", "flush", "discard" or "zero".
        sector: first sector.
        nb_sectors: how many; a flush counts as one.
        buf: where a read went, or the content of a write. What the driver was given is taken back
            when it has answered all, as the core does, and holds something else from then on.
        content: what a write was given, to see that it stays so.
        memory: `buf` with a margin on both sides.
        may_unmap: of a "zero".
        answered: how often each sector was.
        left: sectors without an answer.
        holes: runs that were answered with `BLK_NOT_ALLOCATED`, as (sector, nb_sectors).
        error: the first -errno answered, returned or raised; 0 where there was none.
        failed: runs that have failed, as (sector, nb_sectors).
        lent: what the driver was given, once it was taken back.
    """

    number: int
    op: str
    sector: int
    nb_sectors: int
    memory: bytearray
    buf: memoryview
    content: bytes = b""
    may_unmap: bool = True
    answered: bytearray = attrs.field(factory=bytearray)
    left: int = 0
    holes: list[tuple[int, int]] = attrs.field(factory=list)
    error: int = 0
    failed: list[tuple[int, int]] = attrs.field(factory=list)
    lent: bytearray | None = None

    def __str__(self) -> str:
        where = "" if self.op == "flush" else f" of {run_of(self.sector, self.nb_sectors)}"
        return f"the {self.op}{where}"

    def read(self, parent: bytes | bytearray | None = None) -> bytes:
        """What a read brought; its holes filled from a parent's content, or with zeroes."""
        out = bytearray(self.buf)
        for sector, nb_sectors in self.holes:
            start, size = sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT
            below = bytes(parent[start : start + size]) if parent is not None else b""
            at = (sector - self.sector) << SECTOR_SHIFT
            out[at : at + size] = below.ljust(size, b"\0")
        return bytes(out)

    def take_back(self) -> None:
        """All is answered: the memory is somebody else's now."""
        if not len(self.buf) or self.lent is not None:
            return
        self.lent, self.memory = self.memory, bytearray(self.memory)
        self.buf = memoryview(self.memory)[MARGIN : len(self.memory) - MARGIN]
        self.lent[:] = _REUSED * len(self.lent)

    def used_later(self) -> bool:
        """Whether something was written there after it had been taken back."""
        return self.lent is not None and self.lent.count(_REUSED) != len(self.lent)
