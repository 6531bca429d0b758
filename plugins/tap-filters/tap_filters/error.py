"""`error`: a disk that fails."""

from __future__ import annotations

import errno as codes
import random
from typing import Annotated, Literal

from tap_filters.operations import Operations
from tapcore import Filter, FilterCall, FilterRate, FilterSize, TextForm


def read_errno(text: str) -> int:
    """A positive errno from its name."""
    code = getattr(codes, text, None)
    if not isinstance(code, int):
        raise ValueError(f"'{text}' is not the name of an error (examples: EIO, ENOSPC)")
    return code


class Error(Filter):
    """Requests fail.

    Args:
        rate: how many of those that it is about, by chance.
        op: which operations.
        start: it is about requests that touch this range, from here (bytes) ...
        end: ... to here; None: to the end of the disk. Flushes touch everything.
        errno: of what they fail.
        when: "before": the driver never sees such a request; "after": it has done it.
        count: of failures at most; None: no limit.
        seed: of chance: the same requests in the same order fail again.
        parents: it is about requests to the parents of the disk's image, too.
    """

    title = "requests fail, by chance, range and operation"

    def __init__(
        self,
        *,
        rate: FilterRate = 1.0,
        op: Operations = frozenset({"read", "write"}),
        start: FilterSize = 0,
        end: FilterSize | None = None,
        errno: Annotated[int, TextForm("NAME", read_errno)] = codes.EIO,
        when: Literal["before", "after"] = "before",
        count: int | None = None,
        seed: int = 0,
        parents: bool = False,
    ) -> None:
        if end is not None and end <= start:
            raise ValueError("the range ends before it begins")
        self._rate = rate
        self._operations = op
        self._start, self._end = start, end
        self._errno = errno
        self._after = when == "after"
        self._left = count
        self._chance = random.Random(seed)
        self._parents = parents

    def request(self, call: FilterCall) -> None:
        """Fail it now, later, or not."""
        call.note = fails = self._fails(call)
        if fails and not self._after:
            call.answer(-self._errno)
        else:
            call.go_on()

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        """What the driver has done was not done, as far as is told."""
        call.answer(-self._errno if call.note else res, sector, nb_sectors)

    def _fails(self, call: FilterCall) -> bool:
        if call.op not in self._operations or not (call.of_disk or self._parents):
            return False
        if call.op != "flush" and not self._touched(call.offset, call.offset + call.length):
            return False
        if self._left == 0 or self._chance.random() >= self._rate:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def _touched(self, start: int, end: int) -> bool:
        return end > self._start and (self._end is None or start < self._end)
