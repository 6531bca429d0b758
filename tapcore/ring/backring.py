"""The back end's side of a ring: a machine without I/O, that believes nothing of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tapcore.ring.shared import (
    MASK,
    REQ_EVENT,
    REQ_PROD,
    RSP_EVENT,
    RSP_PROD,
    RingBrokenError,
    SharedRing,
    fences,
    wants_to_be_told,
)

_BROKEN: Final = "the index of its requests says %d of them, in a ring of %d"


class BackRing:
    """Takes requests, publishes answers.

    Args:
        shared: the ring; what its front end initialised.

    Attributes:
        shared: as given.
        req_cons: index of the next request to be taken.
        rsp_prod_pvt: index of the next answer to be written.
        published: answers that the front end was shown end before this index.
    """

    __slots__ = (
        "_fence",
        "_indices",
        "_mask",
        "_memory",
        "_order",
        "_pack",
        "_places",
        "published",
        "req_cons",
        "rsp_prod_pvt",
        "shared",
    )

    def __init__(self, shared: SharedRing, start: int = 0) -> None:
        self.shared = shared
        self.req_cons = self.rsp_prod_pvt = self.published = start
        self._indices = shared.indices
        self._memory = shared.memory
        self._places = shared.places
        self._mask = shared.size - 1
        self._pack = shared.protocol.response.pack_into
        self._fence, self._order = fences()

    # ---- requests ---------------------------------------------------------------------------

    def take(self, most: int = MASK) -> bytes:
        """Requests that are there.

        Args:
            most: at most so many.

        Returns:
            Private copies of their entries, one after the other; empty: there is none.

        Raises:
            RingBrokenError: more than the ring has room for.
        """
        producer, consumer = self._indices[REQ_PROD], self.req_cons
        if producer == consumer:
            return b""
        size = self._mask + 1
        if (producer - self.rsp_prod_pvt) & MASK > size:
            raise RingBrokenError(_BROKEN % ((producer - self.rsp_prod_pvt) & MASK, size))
        count = (producer - consumer) & MASK
        if count > size:  # it went back behind what was taken
            raise RingBrokenError(_BROKEN % (count, size))
        self._order()  # their content after the index that covers it
        count = min(count, most)
        self.req_cons = (consumer + count) & MASK
        return self.shared.copy(consumer, count)

    def final_check(self) -> bool:
        """There was none: whether one has come meanwhile. If not, the front end tells of the next.

        Where the event was written too late for a request that came meanwhile, that is seen here.
        """
        indices, consumer = self._indices, self.req_cons
        if indices[REQ_PROD] != consumer:
            return True
        indices[REQ_EVENT] = (consumer + 1) & MASK
        self._fence()
        return indices[REQ_PROD] != consumer

    # ---- answers ----------------------------------------------------------------------------

    @property
    def for_answers(self) -> tuple[Callable[..., None], memoryview, list[int], int]:
        """What `respond` does it with: for who does the same for many."""
        return self._pack, self._memory, self._places, self._mask

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return (self.req_cons - self.rsp_prod_pvt) & MASK

    def respond(self, id: int, operation: int, status: int) -> None:
        """Write an answer, over an entry whose request was taken before; not published yet."""
        index = self.rsp_prod_pvt
        self._pack(self._memory, self._places[index & self._mask], id, operation, status)
        self.rsp_prod_pvt = (index + 1) & MASK

    def push(self) -> bool:
        """Publish the answers; returns whether the front end wants to be told."""
        old, new = self.published, self.rsp_prod_pvt
        if old == new:
            return False
        self._order()
        self._indices[RSP_PROD] = new
        self.published = new
        self._fence()  # the front end writes its event, and looks for answers, the other way round
        return wants_to_be_told(old, new, self._indices[RSP_EVENT])

    def slots_in_flight(self) -> Iterator[int]:
        """Indices that are between `rsp_prod_pvt` and `req_cons`."""
        for number in range(self.in_flight):
            yield (self.rsp_prod_pvt + number) & MASK
