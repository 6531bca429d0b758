"""A front end and a back end with nothing between them but memory: no socket, no thread."""

import os
import random
from collections.abc import Sequence

import attrs
from enginebench import Bench

from tapcore.engine import Engine
from tapcore.metrics.meter import Meter
from tapcore.ring.backend import MAX_INDIRECT, BackEnd
from tapcore.ring.backring import BackRing
from tapcore.ring.frontend import FrontEnd, Pending
from tapcore.ring.frontring import FrontRing
from tapcore.ring.grants import DataPages
from tapcore.ring.shared import SharedRing
from tapcore.ring.wire import PAGE, SEGMENT, X86_64, Op, Protocol

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

Segment = tuple[int, int, int]
"""Grant, first sector, last sector."""


class Rig:
    """A ring on a disk.

    Args:
        disk: whose loop is turned; or an engine, of a disk that answers everything at once.
        order: binary logarithm of the ring's pages.
        pages: that the front end lends.
        start: the first index.
        read_only: for the front end.
        meter: counts its requests.
    """

    def __init__(
        self,
        disk: Bench | Engine,
        *,
        order: int = 0,
        pages: int = 64,
        protocol: Protocol = X86_64,
        start: int = 0,
        read_only: bool = False,
        max_indirect: int = MAX_INDIRECT,
        meter: Meter | None = None,
    ) -> None:
        self.bench = disk if isinstance(disk, Bench) else None
        engine = disk.engine if isinstance(disk, Bench) else disk
        self.protocol = protocol
        self.memory = memoryview(bytearray((pages << 12) + (PAGE << order)))
        shared = SharedRing(self.memory[: PAGE << order], protocol)
        self.pages = self.memory[PAGE << order :]
        self.ring = FrontRing(shared, start)
        self.front = FrontEnd(self.ring, self.pages, max_indirect=max_indirect)
        self.calls = 0
        self.dirty = False
        self.back = BackEnd(
            engine,
            BackRing(SharedRing(self.memory[: PAGE << order], protocol), start),
            DataPages(self.pages),
            read_only=read_only,
            max_indirect=max_indirect,
            meter=meter,
            ready=self._mark,
        )

    def _mark(self) -> None:
        self.dirty = True

    def _told(self) -> None:
        self.calls += 1

    def kick(self) -> bool:
        """Publish what was put, and let the back end have its turn."""
        self.ring.push()
        self.dirty = False
        return self.back.work(self._told)

    def step(self) -> None:
        """A batch of the loop."""
        if self.bench is not None:
            self.bench.step()
        while self.kick() or self.dirty:
            pass

    def settle(self) -> None:
        """Until the back end has nothing in hand."""
        for _ in range(20_000):
            if not self.kick() and not self.back.busy:
                return
            self.step()
        raise AssertionError("did not settle")

    def finish(self, made: Pending) -> int:
        """The status of a request, when it has one."""
        for _ in range(20_000):
            for each in self.front.answered():
                self.front.done(each)
            if made.status is not None:
                return made.status
            self.step()
        raise AssertionError("it was not answered")

    # ---- by hand ----------------------------------------------------------------------------

    def raw(
        self,
        operation: int,
        sector: int = 0,
        segments: Sequence[Segment] = ((0, 0, 7),),
        *,
        number: int | None = None,
        id: int = 0,
    ) -> list[tuple[int, int, int]]:
        """Send a request of any shape; returns the answers: id, operation, status."""
        head = self.protocol.head.pack(
            operation, len(segments) if number is None else number, id, sector
        )
        body = b"".join(SEGMENT.pack(*each) for each in segments)
        return self.send(head.ljust(self.protocol.segments_at, b"\0") + body)

    def indirect(
        self, operation: int, sector: int, number: int, pages: Sequence[int], id: int = 0
    ) -> list[tuple[int, int, int]]:
        """The same for an indirect request, whose lists stand in pages already."""
        grants = [*pages, *[0] * (8 - len(pages))]
        pack = self.protocol.indirect.pack
        return self.send(pack(Op.INDIRECT, operation, number, id, sector, 0, *grants))

    def send(self, entry: bytes) -> list[tuple[int, int, int]]:
        """Send an entry as it is; returns the answers."""
        self.ring.put(entry.ljust(self.protocol.entry, b"\0"))
        self.settle()
        return self.ring.responses()

    def list_segments(self, page: int, segments: Sequence[Segment]) -> None:
        """Write a list of segments into a page."""
        listed = b"".join(SEGMENT.pack(*each) for each in segments)
        self.pages[page << 12 : (page << 12) + len(listed)] = listed


@attrs.frozen
class Plan:
    """A request to come: where, in 1/1000 of the disk; how long, in sectors."""

    operation: int
    at: int
    sectors: int
    steps: int


def content(seed: int, length: int) -> bytes:
    """Some that is like no other."""
    return random.Random(seed).randbytes(length)
