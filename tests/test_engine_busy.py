"""-EBUSY: what a driver has no room for is tried again, in order, and nothing waits for ever."""

import errno
import itertools
import random
import time
from functools import partial

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import Bench, Op, bench, content_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tapcore.engine import READ, WRITE
from tapcore.engine import dispatch as engine_module


def _nothing_touches(disk: Bench, start: int, end: int) -> bool:
    """No request on its way lies in a range (bytes)."""
    return not any(other.range[0] < end and start < other.range[1] for other in disk.unfinished)


@pytest.fixture
def _no_help_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BUSY_RETRY_SECONDS", 1000.0)


def test_busy_with_nothing_in_flight_is_retried_when_the_timeout_says() -> None:
    image = FaultyImage(8, busy={0, 1, 2}, data=bytearray(b"x" * 4096))
    with bench([image], "faulty") as disk:
        op = disk.read(0, 4096)
        disk.engine.turn()
        assert not op.done
        for _ in range(3):
            timeout = disk.engine.timeout
            assert timeout is not None
            time.sleep(timeout)
            disk.engine.turn()
        assert op.status == 0
        assert op.buf == image.data
        assert disk.engine.timeout is None


def test_nothing_is_retried_before_its_time_when_nothing_happened() -> None:
    image = FaultyImage(8, busy=set(range(1000)))
    with bench([image], "faulty") as disk:
        disk.read(0, 512)
        for _ in range(50):
            disk.engine.turn()
        assert image.queue_calls < 50
        image.busy.clear()
        disk.drain()


@pytest.mark.usefixtures("_no_help_from_the_clock")
def test_what_was_refused_is_retried_as_soon_as_something_finishes() -> None:
    image = FaultyImage(64, late=True, slots=2)
    with bench([image], "faulty") as disk:
        ops = [disk.write(n * 512, bytes([n]) * 512) for n in range(64)]
        disk.drain()
        assert {op.status for op in ops} == {0}
    assert image.data == b"".join(bytes([n]) * 512 for n in range(64))


@pytest.mark.usefixtures("_no_help_from_the_clock")
def test_a_large_request_goes_on_as_soon_as_one_of_its_parts_finishes() -> None:
    image = FaultyImage(5 << 11, late=True, slots=1)
    with bench([image], "faulty") as disk:
        op = disk.write(0, b"z" * (5 << 20))
        disk.drain()
        assert op.status == 0
    assert image.data == b"z" * (5 << 20)
    assert len(image.writes) == 5


@pytest.mark.usefixtures("_no_help_from_the_clock")
def test_what_was_refused_is_taken_in_the_order_it_came() -> None:
    image = FaultyImage(64, late=True, slots=1)
    order: list[int] = []
    with bench([image], "faulty") as disk:
        for n in (5, 3, 60, 1, 0):
            disk.read(n * 512, 512, then=lambda op: order.append(op.req.sector))
        disk.drain()
    assert order == [5, 3, 60, 1, 0]


@pytest.mark.usefixtures("_no_help_from_the_clock")
def test_what_comes_later_does_not_overtake_what_was_refused() -> None:
    image = FaultyImage(64, late=True, slots=1)
    order: list[int] = []
    with bench([image], "faulty") as disk:

        def read(sector: int) -> None:
            disk.read(sector * 512, 512, then=lambda op: order.append(sector))

        for sector in (5, 3, 60):
            read(sector)
        disk.engine.turn()
        for dd, sid in disk.ready():
            disk.engine.readable(dd, sid)  # there is room now, and no turn was taken yet
        read(1)
        disk.drain()
    assert order == [5, 3, 60, 1]


def test_a_turn_ends_although_the_driver_is_busy_and_slow_to_submit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(0.0, 1.0)  # every look at the clock takes a second
    monkeypatch.setattr(engine_module, "monotonic", lambda: next(clock))
    image = FaultyImage(8, busy=set(range(100)))
    with bench([image], "faulty") as disk:
        op = disk.read(0, 512)
        disk.engine.turn()
        assert image.queue_calls < 10
        image.busy.clear()
        disk.engine.turn()
        assert op.status == 0


@pytest.mark.usefixtures("_no_help_from_the_clock")
def test_a_parents_room_is_used_while_the_child_has_none() -> None:
    """A copy-up takes the child's only place and waits for a parent that was busy for a moment."""
    child = LateImage(32, cluster=8, depth=1, now=0.0)
    parent = LateImage(32, cluster=8, depth=1, now=0.0, seed=1)
    parent.fill(random.Random(0), 1.0)
    expected = content_of([child, parent])
    expected[512:1024] = b"a" * 512
    expected[8192:8704] = b"b" * 512
    with bench([child, parent]) as disk:
        reads = [disk.read(n * 4096, 4096) for n in range(4)]  # fill the parent
        first = disk.write(512, b"a" * 512)
        second = disk.write(8192, b"b" * 512)
        disk.drain()
        assert [op.status for op in (*reads, first, second)] == [0] * 6
        assert disk.content() == expected


def test_busy_after_some_of_it_was_answered_is_a_failure_of_the_rest() -> None:
    image = FaultyImage(8)
    with bench([image], "faulty") as disk:

        def half(dd, sector, nb_sectors, buf, cb, id, prv):  # type: ignore[no-untyped-def]
            cb(dd, 0, sector, 1, id, prv)
            return -errno.EBUSY

        disk.engine.layers[0].read = half
        assert disk.run(READ, 0, 1024).status == -errno.EBUSY


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from([READ, WRITE]), st.integers(0, 60), st.integers(1, 4)),
        max_size=30,
    ),
    st.sets(st.integers(0, 40)),
    st.integers(1, 5),
    st.booleans(),
    st.integers(),
)
def test_every_request_is_done_once_whatever_the_schedule(
    plans: list[tuple[int, int, int]], busy: set[int], slots: int, late: bool, seed: int
) -> None:
    image = FaultyImage(64, late=late, slots=slots, busy=busy, seed=seed)
    model = bytearray(image.data)
    reads: list[Op] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        bench([image], "faulty", rng=random.Random(seed)) as disk,
    ):
        patch.setattr(engine_module, "BUSY_RETRY_SECONDS", 0.0)
        for serial, (op, sector, count) in enumerate(plans):
            here = slice(sector * 512, (sector + count) * 512)
            disk.wait_for(partial(_nothing_touches, disk, here.start, here.stop))
            if op == READ:
                content = bytes(model[here])
                reads.append(
                    disk.read(
                        here.start,
                        count * 512,
                        then=lambda op, content=content: setattr(op.req, "tag", op.buf == content),
                    )
                )
            else:
                model[here] = bytes([serial + 1]) * (count * 512)
                disk.write(here.start, bytes(model[here]))
        disk.drain()
        assert all(op.status == 0 and op.req.tag for op in reads)
        assert disk.content() == model
