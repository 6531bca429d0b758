"""The front end's side of a ring: what a guest does, as a machine without I/O."""

from __future__ import annotations

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


class FrontRing:
    """Publishes requests, takes answers.

    Args:
        shared: the ring, which is initialised here.
        start: the first index.

    Attributes:
        shared: as given.
        req_prod_pvt: index of the next request to be written.
        rsp_cons: index of the next answer to be taken.
    """

    __slots__ = (
        "_fence",
        "_indices",
        "_mask",
        "_order",
        "_published",
        "req_prod_pvt",
        "rsp_cons",
        "shared",
    )

    def __init__(self, shared: SharedRing, start: int = 0) -> None:
        self.shared = shared
        self.req_prod_pvt = self.rsp_cons = self._published = start
        self._indices = indices = shared.indices
        self._mask = shared.size - 1
        self._fence, self._order = fences()
        indices[REQ_PROD] = indices[RSP_PROD] = start
        indices[REQ_EVENT] = indices[RSP_EVENT] = (start + 1) & MASK

    @property
    def free(self) -> int:
        """Requests that there is room for."""
        return self.shared.size - ((self.req_prod_pvt - self.rsp_cons) & MASK)

    def place(self) -> int:
        """Where the next request is to be written (bytes of the ring); there has to be room."""
        assert self.free
        index = self.req_prod_pvt
        self.req_prod_pvt = (index + 1) & MASK
        return self.shared.places[index & self._mask]

    def put(self, entry: bytes) -> None:
        """Write a request, packed; it is not published yet."""
        at = self.place()
        self.shared.memory[at : at + len(entry)] = entry

    def push(self) -> bool:
        """Publish the requests; returns whether the back end wants to be told."""
        old, new = self._published, self.req_prod_pvt
        if old == new:
            return False
        self._order()
        self._indices[REQ_PROD] = new
        self._published = new
        self._fence()
        return wants_to_be_told(old, new, self._indices[REQ_EVENT])

    def responses(self) -> list[tuple[int, int, int]]:
        """All answers that are there: id, operation, status.

        Raises:
            RingBrokenError: more than there are requests.
        """
        producer, consumer = self._indices[RSP_PROD], self.rsp_cons
        count = (producer - consumer) & MASK
        if count > (self._published - consumer) & MASK:
            raise RingBrokenError(f"{count} answers, and not so many requests")
        self._order()
        memory, places, mask = self.shared.memory, self.shared.places, self._mask
        unpack = self.shared.protocol.response.unpack_from
        self.rsp_cons = producer
        return [unpack(memory, places[(consumer + n) & mask]) for n in range(count)]

    def final_check(self, more: int = 1) -> bool:
        """There was none: whether one has come meanwhile; if not, the back end tells.

        Args:
            more: of the how manieth from now on, at least 1: who has many requests under way need
                not wake up for each answer.
        """
        indices, consumer = self._indices, self.rsp_cons
        if indices[RSP_PROD] != consumer:
            return True
        indices[RSP_EVENT] = (consumer + more) & MASK
        self._fence()
        return indices[RSP_PROD] != consumer
