"""The two sides' machines of indices, and the structures byte for byte."""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapcore.ring.backring import BackRing
from tapcore.ring.frontring import FrontRing
from tapcore.ring.shared import MASK, RingBrokenError, SharedRing, fences, wants_to_be_told
from tapcore.ring.wire import PAGE, X86_32, X86_64, Protocol

WRAPS = [0, 1, 7, MASK - 40, MASK - 1, MASK]
"""First indices: some of them come to 2^32 soon."""


def ring(
    pages: int = 1, protocol: Protocol = X86_64, start: int = 0
) -> tuple[memoryview, FrontRing, BackRing]:
    """The memory of a ring and both of its sides."""
    memory = memoryview(bytearray(b"\xa5" * (pages * PAGE)))
    front = FrontRing(SharedRing(memory, protocol), start)
    return memory, front, BackRing(SharedRing(memory, protocol), start)


def entry(id: int, protocol: Protocol = X86_64) -> bytes:
    """A request that is known by its id."""
    return protocol.head.pack(0, 1, id, 0).ljust(protocol.entry, b"\xee")


def ids(taken: bytes, protocol: Protocol = X86_64) -> list[int]:
    heads = range(0, len(taken), protocol.entry)
    return [protocol.head.unpack_from(taken, at)[2] for at in heads]


# ---- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [X86_64, X86_32], ids=lambda protocol: protocol.name)
def test_a_ring_of_one_page_has_32_slots_as_the_reference_says(protocol: Protocol) -> None:
    assert [protocol.slots(1 << order) for order in range(5)] == [32, 64, 128, 256, 512]


def test_a_request_of_64_bits_lies_where_the_header_of_xen_has_it() -> None:
    raw = bytearray(112)
    raw[0], raw[1] = 1, 3  # operation, nr_segments
    struct.pack_into("<HxxxxQQ", raw, 2, 0xCA00, 0x1122334455667788, 99)  # handle, id, sector
    struct.pack_into("<IBB", raw, 24, 77, 2, 5)
    assert X86_64.head.unpack_from(raw) == (1, 3, 0x1122334455667788, 99)
    assert X86_64.one.unpack(raw) == (1, 3, 0x1122334455667788, 99, 77, 2, 5)
    assert (X86_64.entry, X86_64.segments_at, X86_64.response.size) == (112, 24, 16)


def test_a_request_of_32_bits_is_packed_more_tightly() -> None:
    raw = bytearray(108)
    raw[0], raw[1] = 0, 1
    struct.pack_into("<QQIBB", raw, 4, 5, 6, 7, 0, 7)  # id at 4, sector at 12, segments from 20 on
    assert X86_32.one.unpack(raw) == (0, 1, 5, 6, 7, 0, 7)
    assert (X86_32.entry, X86_32.segments_at, X86_32.response.size) == (108, 20, 12)


@pytest.mark.parametrize(("protocol", "id_at"), [(X86_64, 8), (X86_32, 4)])
def test_indirect_requests_and_discards_have_the_id_where_all_have_it(
    protocol: Protocol, id_at: int
) -> None:
    indirect = bytearray(protocol.entry)
    indirect[:2] = bytes((6, 1))  # BLKIF_OP_INDIRECT, of a write
    struct.pack_into("<H", indirect, 2, 300)
    struct.pack_into("<QQHxx8I", indirect, id_at, 11, 12, 0xCA00, *range(8))
    assert protocol.indirect.unpack_from(indirect) == (6, 1, 300, 11, 12, 0xCA00, *range(8))
    discard = bytearray(protocol.entry)
    discard[:2] = bytes((5, 1))
    struct.pack_into("<QQQ", discard, id_at, 21, 22, 23)
    assert protocol.discard.unpack_from(discard) == (5, 1, 21, 22, 23)
    assert protocol.head.unpack_from(discard)[2] == 21


def test_indices_and_answers_lie_where_the_reference_has_them() -> None:
    memory, front, back = ring()
    assert struct.unpack_from("<4I", memory) == (0, 1, 0, 1)  # events are 1 in the beginning
    front.put(entry(9))
    front.push()
    assert struct.unpack_from("<4I", memory) == (1, 1, 0, 1)
    assert memory[64:176] == entry(9)
    back.take()
    back.respond(9, 3, -2)
    assert struct.unpack_from("<4I", memory) == (1, 1, 0, 1)  # not published
    assert back.push()
    assert struct.unpack_from("<4I", memory) == (1, 1, 1, 1)
    assert struct.unpack_from("<QBxh", memory, 64) == (9, 3, -2)


# ---- indices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", WRAPS)
@pytest.mark.parametrize("pages", [1, 2])
def test_requests_come_in_order_and_answers_too_across_the_wrap(start: int, pages: int) -> None:
    _, front, back = ring(pages, start=start)
    sent = answered = 0
    for count in [1, back.shared.size, 3, back.shared.size - 1, 40, 2] * 3:
        count = min(count, front.free)
        for number in range(count):
            front.put(entry(sent + number))
        front.push()
        assert ids(back.take()) == list(range(sent, sent + count))
        assert back.in_flight == count
        for number in range(count):
            back.respond(sent + number, 0, 0)
        back.push()
        assert [id for id, _, _ in front.responses()] == list(range(answered, answered + count))
        sent = answered = sent + count
    assert front.free == back.shared.size


def test_what_was_taken_is_a_copy() -> None:
    memory, front, back = ring()
    front.put(entry(1))
    front.push()
    taken = back.take()
    memory[64:] = bytes(len(memory) - 64)
    assert ids(taken) == [1]


@pytest.mark.parametrize("start", WRAPS)
@pytest.mark.parametrize("ahead", [33, 34, 1000, 1 << 31, MASK - 1, MASK])
def test_an_index_that_jumps_breaks_the_ring(start: int, ahead: int) -> None:
    _, front, back = ring(start=start)
    front.shared.indices[0] = (start + ahead) & MASK
    with pytest.raises(RingBrokenError, match="in a ring of 32"):
        back.take()
    assert back.req_cons == start


@pytest.mark.parametrize("start", WRAPS)
def test_an_index_may_not_go_back_either_or_past_what_is_answered(start: int) -> None:
    _, front, back = ring(start=start)
    for number in range(32):
        front.put(entry(number))
    front.push()
    assert len(ids(back.take())) == 32
    front.shared.indices[0] = (start + 33) & MASK  # there is no answer to any of them
    with pytest.raises(RingBrokenError):
        back.take()
    front.shared.indices[0] = (start + 31) & MASK
    with pytest.raises(RingBrokenError):
        back.take()


def test_the_front_end_does_not_believe_everything_either() -> None:
    _, front, back = ring()
    front.put(entry(1))
    front.push()
    back.shared.indices[2] = 2
    with pytest.raises(RingBrokenError):
        front.responses()


# ---- who wants to be told ----------------------------------------------------------------------


@pytest.mark.parametrize("base", [0, 5, MASK - 3, MASK])
def test_the_truth_table_of_notifications(base: int) -> None:
    for old, count, event in itertools.product(range(4), range(1, 5), range(-2, 10)):
        # entry number `event - 1` is the one it waits for
        wanted = old <= event - 1 < old + count
        told = wants_to_be_told(
            (base + old) & MASK, (base + old + count) & MASK, (base + event) & MASK
        )
        assert told == wanted, (old, count, event)


@pytest.mark.parametrize("start", WRAPS)
def test_the_back_end_is_told_of_the_first_request_after_it_found_none(start: int) -> None:
    _, front, back = ring(start=start)
    front.put(entry(0))
    assert front.push()  # as it is in the beginning
    back.take()
    front.put(entry(1))
    assert not front.push()  # it looks again before it sleeps
    assert back.final_check()
    back.take()
    assert not back.final_check()
    front.put(entry(2))
    front.put(entry(3))
    assert front.push()
    front.put(entry(4))
    assert not front.push()  # told once is enough


@pytest.mark.parametrize("start", WRAPS)
def test_the_front_end_is_told_when_as_many_are_answered_as_it_said(start: int) -> None:
    _, front, back = ring(start=start)
    for number in range(8):
        front.put(entry(number))
    front.push()
    back.take()
    assert not front.final_check(4)
    told = []
    for number in range(8):
        back.respond(number, 0, 0)
        told.append(back.push())
    assert told == [False, False, False, True, False, False, False, False]
    assert front.final_check()
    assert len(front.responses()) == 8
    assert not back.push()  # nothing new


def test_a_request_that_comes_while_the_event_is_written_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The race that the final check is there for: between the look and the event."""
    _, front, back = ring()
    fence = back._fence

    def late() -> None:
        front.put(entry(0))
        assert not front.push() or front.shared.indices[1] == 1
        fence()

    back.shared.indices[1] = MASK  # it wants to be told of nothing
    monkeypatch.setattr(back, "_fence", late)
    assert back.final_check()
    assert ids(back.take()) == [0]


def test_an_answer_that_comes_while_the_event_is_written_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, front, back = ring()
    front.put(entry(0))
    front.push()
    back.take()
    fence = front._fence

    def late() -> None:
        back.respond(0, 0, 0)
        back.push()
        fence()

    monkeypatch.setattr(front, "_fence", late)
    assert front.final_check()
    assert front.responses() == [(0, 0, 0)]


def test_there_are_fences_on_other_machines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fences.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    try:
        full, order = fences()
        assert full is order
        full()
    finally:
        fences.cache_clear()


# ---- both against each other -------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.sampled_from([X86_64, X86_32]),
    st.sampled_from([1, 2]),
    st.one_of(st.integers(0, MASK), st.integers(MASK - 70, MASK)),
    st.lists(st.tuples(st.sampled_from("ptar"), st.integers(1, 40)), max_size=40),
)
def test_nothing_is_lost_and_nobody_sleeps_while_there_is_work(
    protocol: Protocol, pages: int, start: int, steps: list[tuple[str, int]]
) -> None:
    """Put, take, answer, receive, in any amounts; told or found by the final check, always."""
    _, front, back = ring(pages, protocol, start)
    sent: list[int] = []
    there: list[int] = []  # at the back end
    received: list[int] = []
    back_sleeps = front_sleeps = True
    for kind, count in steps:
        if kind == "p":
            for _ in range(min(count, front.free)):
                front.put(entry(len(sent), protocol))
                sent.append(len(sent))
            if front.push():
                back_sleeps = False
        elif kind == "t" and not back_sleeps:
            there += ids(back.take(), protocol)
            back_sleeps = not back.final_check()
        elif kind == "a":
            for _ in range(min(count, len(there))):
                back.respond(there.pop(-(len(there) % 3)), 0, 0)
            if back.push():
                front_sleeps = False
        elif kind == "r" and not front_sleeps:
            received += [id for id, _, _ in front.responses()]
            front_sleeps = not front.final_check(1 + count % 2)
    if back_sleeps:
        assert not back.take()
    there += ids(back.take(), protocol)
    for id in there:
        back.respond(id, 0, 0)
    back.push()
    received += [id for id, _, _ in front.responses()]
    assert sorted(received) == sent
    assert front.free == back.shared.size
