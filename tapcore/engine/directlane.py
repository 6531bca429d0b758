"""The lane of a disk past the page cache: between a front end's buffers and the disk, by O_DIRECT.

As in `Lane` a range is in it where nothing has to see or change the data on its way. But here the
disk has to be asked, which takes its time. So what is on its way is counted wherever a request of
the engine would be: nobody takes the disk for idle, a write holds off who wants its range alone,
and a place that is given up meanwhile is not used again before. All that is counted by groups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine.accounting import Accounts
from tapcore.engine.lane import LONG, Lane
from tapcore.engine.requests import READ, WRITE, Segment
from tapcore.files.direct import DirectFile
from tapcore.files.pooledops import Moved, PooledOp
from tapcore.interface.models import DiskDriver
from tapcore.interface.places import ASK, NOWHERE, PlacedFile, Places, UsesOfPlaces

log = logging.getLogger(__name__)

MOST: Final = 1 << 20
"""Bytes of an operation; the engine asks no driver for more at once either."""

_UNKNOWN: Final = object()
_Way: TypeAlias = tuple[Places, Callable[[int, int], int], int, UsesOfPlaces | None]
"""Of an image: what says where its content lies, its way to say it, its sectors, who counts."""


class DirectGroup:
    """Operations that were begun together: in one file, all of them reads, or writes.

    Args:
        lane: of the disk.
        op: READ or WRITE.
        file: that they are in.
        answer: told of those that the kernel is done with, in any order: each once, with its
            answer. Where that is not all of its bytes the engine finds out why; of a write a part
            may be on the disk.

    Attributes:
        op, file, answer: as given.
        pending: those that are not answered.
        inbox: those of which nobody was told yet.
        taken: for who is told: when the requests were taken.
    """

    __slots__ = ("_begun", "_lane", "_uses", "answer", "file", "inbox", "op", "pending", "taken")

    def __init__(
        self,
        lane: DirectLane,
        op: int,
        file: DirectFile,
        answer: Callable[[DirectGroup, list[Moved]], object],
    ) -> None:
        self._lane = lane
        self.op = op
        self.file = file
        self.answer = answer
        self._uses = lane.uses
        self._begun = self.pending = 0
        self.inbox: list[Moved] = []
        self.taken = 0.0

    def is_other(self, lane: DirectLane) -> bool:
        """Whether the place that was said last cannot be in this group."""
        return lane.direct_file is not self.file or lane.uses is not self._uses

    def queue(self, ops: list[PooledOp]) -> None:
        """Queue some more; not more than the file has room for.

        Args:
            ops: in places that the lane has just said; the token of each begins with this group,
                and its offset and length on the disk (bytes).
        """
        lane, count = self._lane, len(ops)
        accounts = lane.accounts
        accounts.in_flight += count
        if not self.pending:
            accounts.past_drivers.add(self)
            if self._uses is not None:
                self._begun = self._uses.begin()
            if self.op != READ:
                accounts.order.groups.add(self)
        if self.op != READ:
            lane.changes += count
        self.pending += count
        self.file.queue_pooled(self.op != READ, ops)

    def begun(self) -> None:
        """The file has one of them in hand, which was not queued here."""
        accounts = self._lane.accounts
        accounts.in_flight += 1
        accounts.past_drivers.add(self)
        if self._uses is not None:
            self._begun = self._uses.begin()
        if self.op != READ:
            accounts.order.groups.add(self)
        self.pending = 1

    def answered(self) -> int:
        """The kernel is done with what is in the inbox; returns how many that are."""
        inbox, self.inbox = self.inbox, []
        count = len(inbox)
        accounts = self._lane.accounts
        accounts.in_flight -= count
        self.pending -= count
        if not self.pending:
            accounts.past_drivers.discard(self)
            if self._uses is not None:
                self._uses.end(self._begun)
            if self.op != READ:
                accounts.order.group_wrote(self)
        try:
            self.answer(self, inbox)
        except Exception:  # its owner's fault, which must not cost others their answers
            log.exception("the owner of a request failed")
        return count

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """What is not answered, on the disk: [start, end) in sectors."""
        return [
            (offset >> SECTOR_SHIFT, (offset + length) >> SECTOR_SHIFT)
            for group, offset, length, *_ in self.file.under_way()
            if group is self
        ]

    def segment(self) -> Segment | None:
        """One of those that are not answered, for whoever says so; None: all are."""
        for start, end in self.ranges:
            return Segment(self.op, start, end - start, None, None, None)
        return None


class DirectLane(Lane):
    """What of a disk lies so.

    Args:
        accounts: of the disk.

    Attributes:
        accounts: as given.
        on: anything can be read so.
        uses: counts who uses the place that was said last.
        whole: the file that is the disk, byte for byte; None: `place_to_read` has to be asked.
    """

    __slots__ = ("_looked", "_ways", "accounts", "direct_file", "on", "uses", "whole")

    cache = "none"

    def __init__(self, accounts: Accounts) -> None:
        super().__init__(accounts.order)
        self.accounts = accounts
        self.on = False
        self.uses: UsesOfPlaces | None = None
        self.whole: DirectFile | None = None
        self.direct_file: DirectFile
        self._ways: list[_Way] = []
        self._looked: PlacedFile | None = None

    def refresh(
        self, dd: DiskDriver, *, unit: int, writable: tuple[int, int], parents: bool
    ) -> None:
        """See `Lane.refresh`."""
        super().refresh(dd, unit=unit, writable=writable, parents=parents)
        self._ways = []
        for places, place, sectors in self._chain:
            uses: Any = getattr(places, "uses", _UNKNOWN)
            if uses is _UNKNOWN:  # a place may be given up while the disk is asked for it
                break
            self._ways.append((places, place, sectors, uses))
        self.on = bool(self._ways)
        if not self.on:
            self._child = None
        whole = self._whole_file if self.on else None
        self.whole = None
        if isinstance(whole, DirectFile) and not unit & (whole.alignment - 1):
            self.whole = self.direct_file = whole

    @property
    def end(self) -> int:
        """Up to where `whole` is the disk, bytes."""
        return 0 if self.whole is None else min(self._size, self.whole.size)

    @property
    def mask(self) -> int:
        """Bytes of a unit, less one: whatever is moved is whole units."""
        return self._mask

    def begin(self) -> None:
        """Requests have come: whether the file is as long as it was is looked at again."""
        self._looked = None

    def place_to_read(self, offset: int, length: int) -> int:
        """Where a range of the disk lies in `direct_file`.

        Args:
            offset: bytes.
            length: bytes, at least 1.

        Returns:
            Bytes; less than 0: ask the engine.
        """
        if (offset | length) & self._mask or offset + length > self._size:
            return ASK
        sector, count = offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT
        for places, place, sectors, uses in self._ways:
            if sector + count > sectors:
                return ASK
            where = place(sector, count)
            if where >= 0:
                file, end = places.data, where + length
                if not self._fits(file, where, length):
                    return ASK
                if length >= LONG and self.direct_file.holes.run(where, end) != (end, True):
                    return ASK  # it is better told what is a hole
                self.uses = uses
                return where
            if where != NOWHERE:
                return ASK
        return ASK

    def place_to_write(self, offset: int, length: int) -> int:
        """The same of a range that can be overwritten in place."""
        if not self.on:
            return ASK
        where = self._place_to_write(offset, length)
        if where < 0:
            return ASK
        file = self.file
        if not self._fits(file, where, length):
            return ASK
        if file is not self._looked:  # once for all that are begun together
            if self.direct_file.is_cut():
                return ASK
            self._looked = file
        self.uses = self._ways[0][3]
        return where

    def writable(self) -> tuple[int, int]:
        """The bytes of `whole`, [start, end), that can be overwritten in place now."""
        file, places = self.whole, self._child
        if file is None or places is None or self._order.strict or places.busy or file.is_cut():
            return 0, 0
        return self._first, min(self._stop, file.size)

    def _fits(self, file: PlacedFile, where: int, length: int) -> bool:
        if where + length > file.size or not isinstance(file, DirectFile):
            return False
        self.direct_file = file
        return not (where | length) & (file.alignment - 1)

    def group(self, op: int, answer: Callable[[DirectGroup, list[Moved]], object]) -> DirectGroup:
        """One of operations in the place that was said last, or in `whole`."""
        if op == WRITE or self.whole is None:
            return DirectGroup(self, op, self.direct_file, answer)
        self.uses = None
        return DirectGroup(self, op, self.whole, answer)
