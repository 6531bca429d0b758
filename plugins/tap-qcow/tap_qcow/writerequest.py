"""A write request, of which parts are stored in several steps."""

from __future__ import annotations

import attrs

from tapcore import SECTOR_SHIFT, Answer


@attrs.frozen(eq=False)
class WriteRequest:
    """A request on its way.

    Attributes:
        first: the hook's `sector`.
        buf: the hook's.
        done: its answer.
    """

    first: int
    buf: memoryview
    done: Answer

    def content(self, sector: int, stop: int) -> memoryview:
        """What is to be written to the sectors from one up to another, not encrypted."""
        first = self.first
        return self.buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]

    def answer(self, res: int, sector: int, stop: int) -> int:
        """The sectors from one up to another are done; returns how many requests that finished."""
        return self.done(res, sector, stop - sector)
