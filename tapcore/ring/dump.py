"""What a ring's indices, events and slots say at a moment: blktap's `debug_fe_ring`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TextIO

import attrs

from tapcore.interface.models import TdState
from tapcore.ring.backend import BackEnd
from tapcore.ring.server import RingServer
from tapcore.ring.shared import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from tapcore.ring.wire import Op

_NAMES = {int(op): op.name.lower().replace("_", " ") for op in Op}


@attrs.frozen
class Slot:
    """A slot of the ring whose request was taken and is not answered.

    Attributes:
        slot: its number.
        id: the front end's name for the request.
        operation: what is asked for.
        sector: first sector.
        sectors: how many.
        pending: of those, not answered yet; of a request in several steps, those of the present.
        status: 0, or the -errno of the first part that failed.
        waits: it was not begun: for a barrier, or for memory.
    """

    slot: int
    id: int
    operation: str
    sector: int
    sectors: int
    pending: int
    status: int
    waits: bool


@attrs.frozen
class RingState:
    """One ring.

    Attributes:
        protocol: how the guest lays out requests.
        slots: of the ring.
        data_pages: that the front end lends.
        req_prod: in the shared page: the front end's index of requests.
        req_event: in the shared page: the back end wants to be told of the request before this one.
        rsp_prod: in the shared page: the back end's index of answers.
        rsp_event: in the shared page: the front end wants to be told of the answer before this one.
        req_cons: the back end's own: the next request to be taken.
        rsp_prod_pvt: the back end's own: the next answer to be written.
        held: nothing is taken, since the disk is being changed.
        private: bytes of private buffers.
        refused: requests that were answered without asking the disk.
        why: of the last of them.
        busy: slots whose requests are under way.
    """

    protocol: str
    slots: int
    data_pages: int
    req_prod: int
    req_event: int
    rsp_prod: int
    rsp_event: int
    req_cons: int
    rsp_prod_pvt: int
    held: bool
    private: int
    refused: int
    why: str
    busy: list[Slot]


def state_of(back: BackEnd) -> RingState:
    """The state of one ring, between two turns of its loop."""
    ring = back.ring
    shared = ring.shared
    indices = shared.indices
    return RingState(
        protocol=shared.protocol.name,
        slots=shared.size,
        data_pages=len(back.memory) >> 12,
        req_prod=indices[REQ_PROD],
        req_event=indices[REQ_EVENT],
        rsp_prod=indices[RSP_PROD],
        rsp_event=indices[RSP_EVENT],
        req_cons=ring.req_cons,
        rsp_prod_pvt=ring.rsp_prod_pvt,
        held=back.engine.held,
        private=back.held,
        refused=back.refused,
        why=back.why,
        busy=sorted(_slots(back), key=lambda slot: slot.slot),
    )


def _slots(back: BackEnd) -> Iterator[Slot]:
    shared = back.ring.shared
    for flight in back.flights.values():
        what = flight.what
        yield Slot(
            slot=flight.index & (shared.size - 1),
            id=what.id,
            operation=_NAMES[what.operation],
            sector=what.offset >> 9,
            sectors=what.length >> 9,
            pending=flight.pending,
            status=flight.status or min((part.status for part in flight.parts), default=0),
            waits=False,
        )
    for index, entry, _ in back.waiting:
        operation, _, id, sector = shared.protocol.head.unpack_from(entry)
        yield Slot(
            slot=index & (shared.size - 1),
            id=id,
            operation=_NAMES.get(operation, str(operation)),
            sector=sector,
            sectors=0,
            pending=0,
            status=0,
            waits=True,
        )


def states_of(td_state: TdState) -> list[RingState]:
    """The rings of a disk; empty where none serves it."""
    server = td_state.ring_info
    if not isinstance(server, RingServer):
        return []
    return [state_of(each.back) for each in server.connections if each.back is not None]


def state_from(told: dict[str, Any]) -> RingState:
    """What was told as JSON, as `attrs.asdict` made it."""
    return RingState(**{**told, "busy": [Slot(**slot) for slot in told["busy"]]})


def debug_fe_ring(td_state: TdState, file: TextIO | None = None) -> None:
    """Print the rings of a disk: shared and private indices, events, and each busy slot.

    Args:
        td_state: the disk.
        file: where to; None: standard error, as the original's log.
    """
    states = states_of(td_state)
    out = sys.stderr if file is None else file
    print(f"{td_state.image}: {len(states)} ring{'s'[: len(states) != 1]}", file=out)
    for number, state in enumerate(states):
        print("\n".join(lines_of(number, state)), file=out)


def lines_of(number: int, state: RingState) -> Iterator[str]:
    """One ring as text."""
    yield (
        f"ring {number}: {state.protocol}, {state.slots} slots, {state.data_pages} data pages"
        f"{', held' if state.held else ''}"
    )
    yield (
        f"  shared:  req_prod {state.req_prod}, req_event {state.req_event}, "
        f"rsp_prod {state.rsp_prod}, rsp_event {state.rsp_event}"
    )
    yield f"  private: req_cons {state.req_cons}, rsp_prod_pvt {state.rsp_prod_pvt}"
    yield f"  {len(state.busy)} busy, {state.private} bytes of private buffers"
    if state.refused:
        yield f"  {state.refused} refused, the last one since {state.why}"
    for slot in state.busy:
        where = f"slot {slot.slot}: {slot.operation}, id {slot.id}, sector {slot.sector}"
        if slot.waits:
            yield f"  {where}, waits"
        else:
            yield f"  {where}+{slot.sectors}, pending {slot.pending}, status {slot.status}"
