"""The back end of one ring: requests are taken, done by lane or engine, and answered once each."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from tapcore.engine import Engine
from tapcore.metrics.meter import Meter
from tapcore.ring.backring import BackRing
from tapcore.ring.counting import Counting
from tapcore.ring.flight import Flight
from tapcore.ring.grants import Grants
from tapcore.ring.requests import SHIFT, Limits, RefusedError, asked
from tapcore.ring.shared import MASK
from tapcore.ring.wire import (
    PAGE,
    READ_ONE,
    SECTORS_PER_PAGE,
    WHOLE_PAGE,
    WRITE_ONE,
    Op,
    Status,
)

MAX_INDIRECT: Final = 256
"""Segments of an indirect request: 1 MiB, what blkback allows."""

MAX_HELD: Final = 32 << 20
"""Bytes of private buffers of one front end. Beyond it, what it asks for waits in the ring."""

ROUNDS: Final = 8
"""So often the ring is looked at for new requests before others have their turn."""

AT_ONCE: Final = 8
"""Requests that are answered together: a front end with more of them under way works on these
answers while the next ones are being made."""

OUT_OF_LANE: Final = 7
"""So many writes go to the engine behind one that was not in the lane."""


class BackEnd:
    """The requests of one front end.

    Args:
        engine: of the disk.
        ring: as the front end has initialised it.
        grants: its pages.
        read_only: it may not write, even where the disk can be written.
        max_indirect: segments of an indirect request; 0: it was not told of those.
        meter: counts its requests; None: nobody does.
        ready: called when there is something for `work` to do.

    Attributes:
        engine: as given; while it is held, nothing is taken.
        ring: as given.
        memory: of the grants.
        held: bytes of private buffers.
        flights: requests that the engine has, by the ring's index.
        waiting: requests that wait for a barrier, or for memory: index, entry, and when it was
            taken.
        unfinished: requests whose next part is to be begun.
        refused: requests that were answered without asking anybody.
        why: of the last of them.
        stopped: nothing more is taken.
        asked: the last `work` has asked the engine for something.
    """

    __slots__ = (
        "_barrier",
        "_blocked",
        "_counting",
        "_grants",
        "_max_indirect",
        "_out_of_lane",
        "_pages",
        "_read_only",
        "_ready",
        "asked",
        "engine",
        "flights",
        "gone",
        "held",
        "memory",
        "refused",
        "ring",
        "stopped",
        "unfinished",
        "waiting",
        "why",
    )

    def __init__(
        self,
        engine: Engine,
        ring: BackRing,
        grants: Grants,
        *,
        read_only: bool = False,
        max_indirect: int = MAX_INDIRECT,
        meter: Meter | None = None,
        ready: Callable[[], object] = bool,
    ) -> None:
        self.engine = engine
        self.ring = ring
        self.memory = grants.memory
        self.held = 0
        self.flights: dict[int, Flight] = {}
        self.waiting: deque[tuple[int, bytes, float]] = deque()
        self.unfinished: list[Flight] = []
        self.refused = 0
        self.why = ""
        self.stopped = False
        self.gone = self.asked = False
        self._grants = grants
        self._read_only = read_only
        self._max_indirect = max_indirect
        self._pages: dict[int, memoryview] = {}
        self._barrier = self._blocked = False
        self._out_of_lane = 0
        self._ready = ready
        self._counting = None if meter is None else Counting(meter, self)

    # ---- turns ------------------------------------------------------------------------------

    def work(self, tell: Callable[[], object]) -> bool:
        """Take and answer as much as can be now; to be called after a kick, and when ready.

        Args:
            tell: called when the front end wants to be told of answers.

        Returns:
            Whether there may be more to do at once, when others have had their turn.

        Raises:
            RingBrokenError: the front end is not to be believed any more.
        """
        ring, counting = self.ring, self._counting
        self.asked = False
        for _ in range(ROUNDS):
            held = self.engine.held
            if (self.unfinished or self.waiting) and not held:
                self._go_on()
            first = ring.req_cons
            taken = b"" if held or self.stopped or self.waiting else ring.take(AT_ONCE)
            if taken:
                self._carry_out(first, taken)
            if self.flights:
                self.engine.turn()
            if ring.push():
                tell()
            if counting is not None and counting.noted:
                counting.answered()
            if held:
                return False
            if self.unfinished:
                return True
            if self.stopped or self.waiting or not ring.final_check():
                return False
        return True

    def _go_on(self) -> None:
        """Begin the next part of long requests, and what has waited, as far as it goes."""
        unfinished, self.unfinished = self.unfinished, []
        for flight in unfinished:
            flight.begin_stage()
        waiting = self.waiting
        while waiting and not self._must_wait(waiting[0][1]):
            self._begin(*waiting.popleft())
        self._blocked = self._barrier or bool(waiting)

    # ---- the fast way -----------------------------------------------------------------------

    def _carry_out(self, first: int, taken: bytes) -> None:
        """Requests of one page that lie in the lane are done here, at once; others elsewhere.

        This is done for each request, so it calls, and compares, as little as can be.
        """
        ring, pages, lane = self.ring, self._pages, self.engine.lane
        pack, memory, places, mask = ring.for_answers
        lane.begin()
        counting = self._counting
        if counting is not None and lane.now >= counting.batch.next:
            counting.begin(lane.now)
        read, written = lane.read, self._written
        entry = len(taken) // ((ring.req_cons - first) & MASK)
        at, index, read_whole = 0, ring.rsp_prod_pvt, 0
        for kind, id, sector, gref, span in ring.shared.protocol.short.iter_unpack(taken):
            if READ_ONE <= kind <= WRITE_ONE and not self._blocked:
                page = pages.get(gref)
                if page is None or span != WHOLE_PAGE:
                    done = self._part_done(kind, sector, gref, span)
                elif kind == READ_ONE:
                    done = read(sector, SECTORS_PER_PAGE, page)
                    read_whole += done
                else:
                    done = written(sector, page)
                if done:
                    pack(memory, places[index & mask], id, kind & 1, 0)
                    index += 1
                    at += entry
                    continue
            ring.rsp_prod_pvt = index & MASK
            self._other((first + at // entry) & MASK, taken[at : at + entry])
            index = ring.rsp_prod_pvt
            at += entry
        ring.rsp_prod_pvt = index & MASK
        if read_whole and counting is not None:
            counting.reads += [PAGE] * read_whole

    def _part_done(self, kind: int, sector: int, gref: int, span: int) -> bool:
        """The same for a part of a page, or one not seen before: whether the lane has done it."""
        page = self._part(gref, span)
        if page is None:
            return False
        if kind != READ_ONE:
            return self._written(sector, page)
        if not self.engine.lane.read(sector, len(page) >> SHIFT, page):
            return False
        if self._counting is not None:
            self._counting.reads.append(len(page))
        return True

    def _part(self, gref: int, span: int) -> memoryview | None:
        """What a segment is about; None where it is malformed, or not granted."""
        start, last = span & 0xFF, span >> 8
        page = self._pages.get(gref) or self._page(gref)
        if page is None or not start <= last < SECTORS_PER_PAGE:
            return None
        return page[start << SHIFT : (last + 1) << SHIFT]

    def _page(self, gref: int) -> memoryview | None:
        """A page that is granted; remembered, since it stays so."""
        place = self._grants.place(gref)
        if place < 0:
            return None
        self._pages[gref] = page = self.memory[place : place + PAGE]
        return page

    def _written(self, sector: int, content: memoryview) -> bool:
        """Whether a write was done in the lane; it is not tried again at once where it was not."""
        if self._out_of_lane:
            self._out_of_lane -= 1
            return False
        if not self._read_only and self.engine.lane.write(sector << SHIFT, content) == 0:
            if self._counting is not None:
                self._counting.writes.append(len(content))
            return True
        self._out_of_lane = OUT_OF_LANE
        return False

    # ---- all others -------------------------------------------------------------------------

    def _other(self, index: int, entry: bytes) -> None:
        if self.waiting or self._must_wait(entry):
            self.waiting.append((index, entry, self.engine.lane.now))
            self._blocked = True
        else:
            self._begin(index, entry, self.engine.lane.now)

    def _must_wait(self, entry: bytes) -> bool:
        """For a barrier's end; a barrier for the end of all before it; anybody for memory."""
        if self._barrier or self.held > MAX_HELD:
            return True
        return entry[0] == Op.WRITE_BARRIER and bool(self.flights)

    def _begin(self, index: int, entry: bytes, taken: float) -> None:
        protocol = self.ring.shared.protocol
        engine = self.engine
        read_only = self._read_only or engine.read_only
        limits = Limits(engine.size, read_only, self._max_indirect)
        try:
            what = asked(entry, protocol, self._grants, limits)
        except RefusedError as exc:
            _, _, id, _ = protocol.head.unpack_from(entry)
            self.refused += 1
            self.why = str(exc)
            if self._counting is not None:
                self._counting.refused(exc.operation, exc.length, taken)
            self.ring.respond(id, exc.operation, exc.status)
            return
        self.asked = True
        self._barrier = self._blocked = what.operation == Op.WRITE_BARRIER
        self.flights[index] = flight = Flight(index, what, self, taken)
        flight.begin_stage()

    def later(self, flight: Flight) -> None:
        """See `Owner`."""
        self.unfinished.append(flight)
        self._ready()

    def ended(self, flight: Flight) -> None:
        """See `Owner`."""
        del self.flights[flight.index]
        what = flight.what
        if what.operation == Op.WRITE_BARRIER:
            self._barrier = False
            self._blocked = bool(self.waiting)
        if not flight.gone:
            if self._counting is not None:
                self._counting.driven(
                    what.operation, what.length, flight.taken, flight.queued, flight.status
                )
            self.ring.respond(what.id, what.operation, _status(flight.status))
            self._ready()

    # ---- the end ----------------------------------------------------------------------------

    def leave(self) -> None:
        """The front end has gone: nothing is taken or answered any more."""
        if self._counting is not None:
            self._counting.leave()
        self.gone = self.stopped = True
        self.waiting.clear()
        for flight in self.flights.values():
            flight.gone = True
        self._go_on()
        self._ready = bool

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return self.ring.in_flight

    @property
    def concerns_nobody(self) -> bool:
        """Whether the lane alone did the last `work`, and its counters need not be shown yet."""
        if self.asked:
            return False
        counting = self._counting
        return counting is None or monotonic() < counting.batch.due

    @property
    def busy(self) -> bool:
        """Whether the front end is owed anything that was taken."""
        return bool(self.flights or self.waiting or self.unfinished)


def _status(status: int) -> Status:
    """What a front end is told of 0 or -errno."""
    if not status:
        return Status.OKAY
    return Status.EOPNOTSUPP if status == -errno.EOPNOTSUPP else Status.ERROR
