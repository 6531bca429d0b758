"""A write request, of which parts are stored in several steps."""

from __future__ import annotations

import attrs

from tapcore import SECTOR_SHIFT, Answer


@attrs.frozen(eq=False)
class WriteRequest:
    """What the hook was given.

    Attributes:
        first: its first sector.
        buf: the hook's.
        whole: answers the request.
    """

    first: int
    buf: memoryview
    whole: Answer

    def content(self, sector: int, stop: int) -> memoryview:
        """What is to be written to the sectors from one up to another, not encrypted."""
        first = self.first
        return self.buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]

    def answer(self, res: int, sector: int, stop: int) -> int:
        """The sectors from one up to another are done; returns how many requests that finished."""
        return self.whole(res, sector, stop - sector)
