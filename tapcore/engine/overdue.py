"""Answers that a driver owes for long: a request that hangs is named, with who has it.

No request is timed. While something is in flight, what is unanswered is looked at now and then;
what was there ten seconds ago is overdue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Set
from time import monotonic
from typing import Final, Protocol, TypeAlias

from tapcore.engine.requests import OP_NAMES, Layer, Segment
from tapcore.interface.models import DiskDriver

log = logging.getLogger(__name__)

OVERDUE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 2.0


class PastDrivers(Protocol):
    """What the disk has to answer itself, whatever the driver."""

    def segment(self) -> Segment | None:
        """A part of it that is not answered; None: all is."""


Owed: TypeAlias = Segment | PastDrivers


class Overdue:
    """What the drivers of a chain have not answered, and since when.

    Args:
        layers: the images, child first.
        past_drivers: what no driver has.
    """

    __slots__ = ("_layers", "_next", "_past_drivers", "_since", "_told")

    def __init__(self, layers: list[Layer], past_drivers: Set[PastDrivers] = frozenset()) -> None:
        self._layers = layers
        self._past_drivers = past_drivers
        self._next = 0.0
        self._since: dict[Owed, float] = {}
        self._told: set[Owed] = set()

    def seconds_left(self) -> float:
        """Until the next look, which is taken now where it is due; never zero."""
        now = monotonic()
        if now >= self._next:
            self._look(now)
            self._next = now + LOOK_SECONDS
        return self._next - now

    def _look(self, now: float) -> None:
        owed = dict(self._owed())
        self._since = {seg: self._since.get(seg, now) for seg in owed}
        self._told &= owed.keys()
        for dd in {owed[seg]: None for seg in owed}:
            late = [
                seg
                for seg, since in self._since.items()
                if owed[seg] is dd and now - since >= OVERDUE_SECONDS and seg not in self._told
            ]
            if late:
                self._tell(dd, late, now)

    def _owed(self) -> Iterator[tuple[Owed, DiskDriver]]:
        """What no driver has; of others, segments that one has, or refuses again and again, but for
        what a parent has.
        """
        for layer in self._layers:
            for seg in (*layer.handed, *layer.batch, *layer.parked):
                if seg.pending > seg.forwarded:
                    yield seg, layer.dd
        for group in self._past_drivers:
            yield group, self._layers[0].dd

    def _tell(self, dd: DiskDriver, late: list[Owed], now: float) -> None:
        self._told.update(late)
        first = late[0]
        seg = first if isinstance(first, Segment) else first.segment()
        if seg is None:
            return
        more = f" (and {len(late) - 1} more)" if len(late) > 1 else ""
        log.warning(
            "%s: no answer for %.0f s: the driver %s has a %s of %d sectors at sector %d%s",
            dd.name,
            now - self._since[first],
            dd.drv.disk_type,
            OP_NAMES[seg.op],
            seg.nb_sectors,
            seg.sector,
            more,
        )
