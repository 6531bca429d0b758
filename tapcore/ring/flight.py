"""A request under way in the engine: its parts, stage by stage, and its one end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from tapcore.buffers import POOL
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, Engine, Request
from tapcore.ring.requests import Asked, Run
from tapcore.ring.wire import Op

DISCARD_PIECE: Final = 1 << 30
"""Bytes. A longer range is discarded piece by piece, so that others have their turn between."""


class Owner(Protocol):
    """Who has sent a flight on its way.

    Attributes:
        engine: of the disk.
        memory: of the grants.
        held: bytes of private buffers, of all flights together.
    """

    engine: Engine
    memory: memoryview
    held: int

    def ended(self, flight: Flight) -> object:
        """All parts of it are finished."""

    def later(self, flight: Flight) -> object:
        """Its next stage is to be begun in another turn, with `begin_stage`."""


class Flight:
    """One request of a front end.

    A stage begins when all parts of the one before are finished; none after the first error.

    Args:
        index: of the ring, at which it was taken.
        what: is asked for.
        owner: is told of its end.
        taken: when it was taken (`time.monotonic`).

    Attributes:
        index: as given.
        what: as given.
        status: 0, or the -errno of the first part that failed.
        parts: the requests of this stage.
        gone: nobody wants its answer, or its content, any more.
        taken: as given.
        queued: when the first of its parts that had to wait went to its driver; 0.0: none had to.
    """

    __slots__ = (
        "_left",
        "_owner",
        "_stages",
        "gone",
        "index",
        "parts",
        "queued",
        "status",
        "taken",
        "what",
    )

    def __init__(self, index: int, what: Asked, owner: Owner, taken: float = 0.0) -> None:
        self.index = index
        self.what = what
        self.status = 0
        self.taken = taken
        self.queued = 0.0
        self.parts: list[Request] = []
        self.gone = False
        self._owner = owner
        self._left = 0
        self._stages = self._all_stages()

    @property
    def pending(self) -> int:
        """Sectors that are not answered yet, of this stage; a flush counts as one."""
        return sum(part.pending for part in self.parts)

    def begin_stage(self) -> None:
        """Begin, or go on with the next stage; it may end before this returns."""
        self.parts = parts = [] if self.status or self.gone else next(self._stages, [])
        if not parts:
            self._stages = iter(())
            self._owner.ended(self)
            return
        self._left = len(parts)
        for part in parts:
            self._owner.engine.submit(part)

    def _all_stages(self) -> Iterator[list[Request]]:
        operation, runs = self.what.operation, self.what.runs
        if operation == Op.READ:
            yield [self._read(run) for run in runs]
        elif operation == Op.WRITE:
            yield [self._write(run) for run in runs]
        elif operation == Op.DISCARD:
            yield from self._discards()
        else:  # what was answered before is on disk before this is written, and this with its end
            yield [self._flush()]
            if runs:
                yield [self._write(run) for run in runs]
                yield [self._flush()]

    def _finished(self, part: Request) -> None:
        self.status = self.status or part.status
        self.queued = self.queued or part.queued
        # the engine remembers requests for a while, and the memory is to go with its front end
        part.buf, part.done = None, _nothing
        self._left -= 1
        if self._left:
            return
        if part.op == DISCARD and not self.status:
            self._owner.later(self)
        else:
            self.begin_stage()

    # ---- parts ------------------------------------------------------------------------------

    def _flush(self) -> Request:
        return Request(FLUSH, 0, 0, None, self._finished)

    def _discards(self) -> Iterator[list[Request]]:
        offset, end = self.what.offset, self.what.offset + self.what.length
        while offset < end:
            stop = min(end, (offset // DISCARD_PIECE + 1) * DISCARD_PIECE)
            self._owner.engine.before_giving_up()
            yield [Request(DISCARD, offset, stop - offset, None, self._finished)]
            offset = stop

    def _read(self, run: Run) -> Request:
        """Into the front end's pages, where nobody but the front end looks at what is there."""
        pages = self._pages(run)
        if self._owner.engine.lane.plain_reads:
            return Request(READ, run.offset, run.length, pages, self._finished)
        lease = self._lease(run)
        return Request(READ, run.offset, run.length, lease[: run.length], self._copy_out, lease)

    def _write(self, run: Run) -> Request:
        """From the front end's pages, where it does not matter that they change meanwhile.

        Who looks at content before it is stored (a filter, a cipher, a guard) must store what he
        has seen.
        """
        pages = self._pages(run)
        if self._owner.engine.lane.plain_write(run.offset, run.length):
            return Request(WRITE, run.offset, run.length, pages.toreadonly(), self._finished)
        lease = self._lease(run)
        content = lease[: run.length]
        content[:] = pages
        return Request(WRITE, run.offset, run.length, content.toreadonly(), self._give_back, lease)

    def _pages(self, run: Run) -> memoryview:
        return self._owner.memory[run.place : run.place + run.length]

    def _lease(self, run: Run) -> memoryview:
        lease = POOL.take(run.length)
        self._owner.held += len(lease)
        return lease

    def _copy_out(self, part: Request) -> None:
        """A read through a private buffer has come."""
        if not part.status and not self.gone:
            run = self._run_at(part.offset)
            self._pages(run)[:] = part.tag[: run.length]
        self._give_back(part)

    def _run_at(self, offset: int) -> Run:
        return next(run for run in self.what.runs if run.offset == offset)

    def _give_back(self, part: Request) -> None:
        self._owner.held -= len(part.tag)
        POOL.give(part.tag)
        self._finished(part)


def _nothing(_: Request) -> None:
    """Nobody wants to be told again."""
