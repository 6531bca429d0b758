"""A write request, of which parts are stored in several steps."""

from __future__ import annotations

from typing import Any

import attrs

from tapcore import SECTOR_SHIFT, DiskDriver, TdCallback


@attrs.frozen(eq=False)
class WriteRequest:
    """The arguments of the hook.

    Attributes:
        dd: the hook's.
        first: its `sector`.
        buf: the hook's.
        cb: the hook's.
        id: the hook's.
        prv: the hook's.
    """

    dd: DiskDriver
    first: int
    buf: memoryview
    cb: TdCallback
    id: int
    prv: Any

    def content(self, sector: int, stop: int) -> memoryview:
        """What is to be written to the sectors from one up to another, not encrypted."""
        first = self.first
        return self.buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]

    def answer(self, res: int, sector: int, stop: int) -> int:
        """The sectors from one up to another are done; returns how many requests that finished."""
        return self.cb(self.dd, res, sector, stop - sector, self.id, self.prv)
