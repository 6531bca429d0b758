"""A front end without I/O: requests over pages that it lends, answered in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from tapcore.ring.frontring import FrontRing
from tapcore.ring.wire import (
    MAX_SEGMENTS,
    PAGE,
    SECTORS_PER_PAGE,
    SEGMENT,
    SEGMENTS_PER_PAGE,
    Op,
    Status,
)

SECTOR: Final = 512


@attrs.define(eq=False)
class Pending:
    """A request that was put into the ring.

    Attributes:
        id: the front end's name for it.
        operation: as it will stand in the answer.
        pages: its content's, in order.
        lists: pages that list them, of an indirect request.
        length: bytes of content.
        status: of the answer; None: there is none yet.
    """

    id: int
    operation: int
    pages: tuple[int, ...]
    lists: tuple[int, ...]
    length: int
    status: int | None = None


class FrontEnd:
    """The requests of one ring.

    Args:
        ring: initialised.
        memory: the pages that are granted, by their numbers.
        max_indirect: segments of an indirect request that the back end takes; 0: it takes none.

    Attributes:
        memory: as given.
        pending: requests that are not answered, by id.
    """

    def __init__(self, ring: FrontRing, memory: memoryview, *, max_indirect: int = 0) -> None:
        self._ring = ring
        self.memory = memory
        self._protocol = ring.shared.protocol
        self._max_indirect = max_indirect
        self._free = list(range(len(memory) // PAGE - 1, -1, -1))
        self._next_id = 0
        self.pending: dict[int, Pending] = {}

    # ---- requests ---------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """Bytes of the longest request."""
        return max(self._max_indirect, MAX_SEGMENTS) * PAGE

    def room_for(self, length: int) -> bool:
        """Whether a request with so many bytes can be put now."""
        pages = -(-length // PAGE)
        lists = -(-pages // SEGMENTS_PER_PAGE) if pages > MAX_SEGMENTS else 0
        return bool(self._ring.free) and len(self._free) >= pages + lists

    def read(self, offset: int, length: int) -> Pending:
        """Put a READ of whole sectors (bytes); there has to be room."""
        return self._transfer(Op.READ, offset, length)

    def write(self, offset: int, content: bytes | memoryview, operation: int = Op.WRITE) -> Pending:
        """Put a WRITE, or another operation that has content; there has to be room."""
        pages = self._take(-(-len(content) // PAGE))
        for number, page in enumerate(pages):
            part = content[number * PAGE : (number + 1) * PAGE]
            self.memory[page * PAGE : page * PAGE + len(part)] = part
        return self._transfer(operation, offset, len(content), pages)

    def flush(self) -> Pending:
        """Put a FLUSH_DISKCACHE."""
        return self._transfer(Op.FLUSH_DISKCACHE, 0, 0)

    def barrier(self) -> Pending:
        """Put a WRITE_BARRIER without content."""
        return self._transfer(Op.WRITE_BARRIER, 0, 0)

    def discard(self, offset: int, length: int, flag: int = 0) -> Pending:
        """Put a DISCARD of whole sectors (bytes)."""
        made = self._new(Op.DISCARD)
        pack = self._protocol.discard.pack
        self._ring.put(pack(Op.DISCARD, flag, made.id, offset // SECTOR, length // SECTOR))
        return made

    def _transfer(
        self, operation: int, offset: int, length: int, pages: tuple[int, ...] | None = None
    ) -> Pending:
        if pages is None:
            pages = self._take(-(-length // PAGE))
        segments = []
        for number, page in enumerate(pages):
            sectors = min((length - number * PAGE) // SECTOR, SECTORS_PER_PAGE)
            segments.append(SEGMENT.pack(page, 0, sectors - 1))
        made = self._new(operation, pages, length)
        if len(segments) > MAX_SEGMENTS:
            self._put_indirect(made, offset // SECTOR, segments)
        else:
            head = self._protocol.head.pack(operation, len(segments), made.id, offset // SECTOR)
            self._ring.put(head.ljust(self._protocol.segments_at, b"\0") + b"".join(segments))
        return made

    def _put_indirect(self, made: Pending, sector: int, segments: Sequence[bytes]) -> None:
        made.lists = lists = self._take(-(-len(segments) // SEGMENTS_PER_PAGE))
        for number, page in enumerate(lists):
            first = number * SEGMENTS_PER_PAGE
            listed = b"".join(segments[first : first + SEGMENTS_PER_PAGE])
            self.memory[page * PAGE : page * PAGE + len(listed)] = listed
        grants = [*lists, *[0] * (8 - len(lists))]
        pack = self._protocol.indirect.pack
        self._ring.put(
            pack(Op.INDIRECT, made.operation, len(segments), made.id, sector, 0, *grants)
        )

    def _new(self, operation: int, pages: tuple[int, ...] = (), length: int = 0) -> Pending:
        made = Pending(self._next_id, operation, pages, (), length)
        self._next_id += 1
        self.pending[made.id] = made
        return made

    def _take(self, count: int) -> tuple[int, ...]:
        return tuple(self._free.pop() for _ in range(count))

    # ---- answers ----------------------------------------------------------------------------

    def answered(self) -> list[Pending]:
        """Requests that have been answered since; each is to be given back with `done`.

        Raises:
            RingBrokenError: the back end is not to be believed.
            KeyError: it answered what was not asked.
        """
        found = []
        for id, _, status in self._ring.responses():
            made = self.pending.pop(id)
            made.status = status
            found.append(made)
        return found

    def content(self, made: Pending) -> bytes:
        """What a READ that was answered has brought."""
        whole = b"".join(self.memory[page * PAGE : (page + 1) * PAGE] for page in made.pages)
        return whole[: made.length]

    def done(self, made: Pending) -> None:
        """Its pages may be used again."""
        self._free += made.pages
        self._free += made.lists


def succeeded(made: Pending) -> bool:
    """Whether an answer says so."""
    return made.status == Status.OKAY
